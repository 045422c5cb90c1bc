# Asks by a program: sh cli.sh PROGRAM WAY…, where a way is plain, stream or tools. Prints a line for each.
# page/PROGRAM.sh is the command of docs/serve.md, whose question is Hi. Each question is a process of its own.
program=$1
shift
for way in "$@"; do
  more='' question=Hi
  case "$way $program" in
    'stream gemini-cli') more='--output-format stream-json' ;;
    'stream claude-code') more='--output-format stream-json --verbose' ;;
    'plain llm') more=--no-stream ;;
    'plain aider') more=--no-stream ;;
    'tools llm') more='-T llm_version' ;;
  esac
  [ "$way" = tools ] && question='What is the weather in Paris?'
  command=$(sed "s/Hi/$question/" "page/$program.sh")
  said=$(eval "$command $more" 2>&1 </dev/null)
  code=$?
  case "$code $said" in
    0*'ok from'* | 0*'"ok'*) echo "$way: ok" ;;
    *) echo "$way: failed: exit $code: $(echo "$said" | tail -c 300 | tr '\n' ' ')" ;;
  esac
done
