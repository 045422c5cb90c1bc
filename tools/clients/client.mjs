// Asks by a library of Node: node client.mjs LIBRARY WAY…, where a way is plain, stream, tools or upload.
// Prints a line for each. What docs/serve.md says for a library is in page/LIBRARY.mjs.
const question = "Hi", weather = "What is the weather in Paris?";
const [, , library, ...ways] = process.argv;
const load = (name) => import(`./page/${name.replace("/", "+")}.mjs`).then((made) => made.default);
const schema = { type: "object", properties: { city: { type: "string" } } };
const functions = [{ type: "function", function: { name: "weather", description: "w", parameters: schema } }];
const file = () => new File(["hello"], "hello.txt", { type: "text/plain" });

async function joined(pieces, text) {
  let all = "";
  for await (const piece of await pieces) all += text(piece) ?? "";
  return all;
}

const libraries = {
  "@google/genai": async () => {
    const { GoogleGenAI } = await import("@google/genai");
    const gemini = new GoogleGenAI({});
    const model = "gemini-3.8-flash", asked = { model, contents: question };
    const tools = [{ functionDeclarations: [{ name: "weather", parametersJsonSchema: schema }] }];
    return {
      plain: async () => (await gemini.models.generateContent(asked)).text,
      stream: () => joined(gemini.models.generateContentStream(asked), (chunk) => chunk.text),
      tools: async () =>
        (await gemini.models.generateContent({ model, contents: weather, config: { tools } })).functionCalls[0].name,
      upload: async () => {
        const stored = await gemini.files.upload({ file: file(), config: { mimeType: "text/plain" } });
        return (await gemini.files.get({ name: stored.name })).name;
      },
      live: () =>
        new Promise((opened, failed) => {
          const onerror = (error) => failed(error.message);
          const callbacks = { onopen: opened, onmessage() {}, onerror, onclose: (left) => failed(left.reason) };
          gemini.live.connect({ model: "gemini-live-2.5-flash-preview", callbacks }).catch(failed);
        }),
    };
  },
  openai: async () => {
    const { default: OpenAI } = await import("openai");
    const openai = new OpenAI();
    const ask = (content, more) =>
      openai.chat.completions.create({ model: "gpt-5", messages: [{ role: "user", content }], ...more });
    return {
      plain: async () => (await ask(question)).choices[0].message.content,
      stream: () => joined(ask(question, { stream: true }), (chunk) => chunk.choices[0]?.delta?.content),
      tools: async () => (await ask(weather, { tools: functions })).choices[0].message.tool_calls[0].function.name,
      upload: async () => {
        const stored = await openai.files.create({ file: file(), purpose: "user_data" });
        return (await openai.files.retrieve(stored.id)).id;
      },
    };
  },
  "@anthropic-ai/sdk": async () => {
    const { default: Anthropic } = await import("@anthropic-ai/sdk");
    const anthropic = new Anthropic();
    const ask = (content, more) =>
      anthropic.messages.create({
        model: "claude-sonnet-5", max_tokens: 99, messages: [{ role: "user", content }], ...more,
      });
    return {
      plain: async () => (await ask(question)).content[0].text,
      stream: () => joined(ask(question, { stream: true }), (event) => event.delta?.text),
      tools: async () => (await ask(weather, { tools: [{ name: "weather", input_schema: schema }] })).content[0].name,
      upload: async () => {
        const stored = await anthropic.beta.files.upload({ file: file() });
        return (await anthropic.beta.files.retrieveMetadata(stored.id)).id;
      },
    };
  },
  "@mistralai/mistralai": async () => {
    const mistral = await load(library);
    const asked = (content, more) => ({
      model: "mistral-small-latest", messages: [{ role: "user", content }], ...more,
    });
    return {
      plain: async () => (await mistral.chat.complete(asked(question))).choices[0].message.content,
      stream: () => joined(mistral.chat.stream(asked(question)), (event) => event.data.choices[0]?.delta?.content),
      tools: async () =>
        (await mistral.chat.complete(asked(weather, { tools: functions }))).choices[0].message.toolCalls[0].function
          .name,
      upload: async () => (await mistral.files.upload({ file: file() })).id,
    };
  },
  "@ai-sdk/google": async () => vercel((await load(library))("gemini-3.8-flash")),
  "@ai-sdk/openai": async () => vercel((await import(library)).openai("gpt-5")),
  "@ai-sdk/anthropic": async () => vercel((await import(library)).anthropic("claude-sonnet-5")),
  "@langchain/google-genai": async () => langchain(await load(library)),
  "@langchain/openai": async () => langchain(new (await import(library)).ChatOpenAI({ model: "gpt-5" })),
  "@langchain/anthropic": async () =>
    langchain(new (await import(library)).ChatAnthropic({ model: "claude-sonnet-5" })),
};

async function vercel(model) {
  const { generateText, streamText, tool, jsonSchema } = await import("ai");
  const tools = { weather: tool({ description: "w", inputSchema: jsonSchema(schema) }) };
  return {
    plain: async () => (await generateText({ model, prompt: question, maxRetries: 0 })).text,
    stream: async () => {
      let failed;
      const onError = ({ error }) => (failed = error);
      const asked = streamText({ model, prompt: question, maxRetries: 0, onError });
      const text = await joined(asked.textStream, (piece) => piece);
      if (failed) throw failed;
      return text;
    },
    tools: async () => (await generateText({ model, prompt: weather, tools, maxRetries: 0 })).toolCalls[0].toolName,
  };
}

function langchain(model) {
  return {
    plain: async () => (await model.invoke(question)).text,
    stream: () => joined(model.stream(question), (chunk) => chunk.text),
    tools: async () => (await model.bindTools(functions).invoke(weather)).tool_calls[0].name,
  };
}

const made = await libraries[library]();
for (const way of ways) {
  try {
    console.log(`${way}: ${await made[way]()}`);
  } catch (error) {
    console.log(`${way}: failed: ${error?.stack?.split("\n")[0] ?? error} ${error?.cause ?? ""}`);
  }
}
process.exit(0);
