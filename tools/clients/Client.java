// Asks by a library of Java: java Client.java LIBRARY WAY…, where a way is plain, stream, tools or upload.
// Prints a line for each.
import com.google.genai.Client;
import com.google.genai.types.FunctionDeclaration;
import com.google.genai.types.GenerateContentConfig;
import com.google.genai.types.Tool;
import com.google.genai.types.UploadFileConfig;
import com.openai.client.OpenAIClient;
import com.openai.client.okhttp.OpenAIOkHttpClient;
import com.openai.models.FunctionDefinition;
import com.openai.models.chat.completions.ChatCompletionCreateParams;
import com.openai.models.chat.completions.ChatCompletionFunctionTool;
import com.openai.models.files.FileCreateParams;
import com.openai.models.files.FilePurpose;
import java.util.Arrays;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;

class Program {
  static final String QUESTION = "Hi", WEATHER = "What is the weather in Paris?";

  public static void main(String[] given) {
    Map<String, Callable<String>> ways = given[0].startsWith("com.google") ? google() : openAI();
    for (String way : Arrays.copyOfRange(given, 1, given.length)) {
      try {
        System.out.println(way + ": " + ways.get(way).call());
      } catch (Exception failed) {
        System.out.println(way + ": failed: " + failed.toString().replace("\n", " "));
      }
    }
    System.exit(0);
  }

  static Map<String, Callable<String>> google() {
    Client client = new Client();
    String model = "gemini-3.8-flash";
    Tool tool =
        Tool.builder()
            .functionDeclarations(FunctionDeclaration.builder().name("weather").description("w").build())
            .build();
    GenerateContentConfig tools = GenerateContentConfig.builder().tools(tool).build();
    UploadFileConfig text = UploadFileConfig.builder().mimeType("text/plain").build();
    return Map.of(
        "plain", () -> client.models.generateContent(model, QUESTION, null).text(),
        "stream",
            () -> {
              StringBuilder all = new StringBuilder();
              try (var chunks = client.models.generateContentStream(model, QUESTION, null)) {
                chunks.forEach(chunk -> all.append(chunk.text()));
              }
              return all.toString();
            },
        "tools",
            () ->
                client.models.generateContent(model, WEATHER, tools).functionCalls().get(0).name().get(),
        "upload",
            () -> {
              String name = client.files.upload("hello".getBytes(), text).name().get();
              return client.files.get(name, null).name().get();
            });
  }

  static Map<String, Callable<String>> openAI() {
    OpenAIClient client = OpenAIOkHttpClient.fromEnv();
    ChatCompletionCreateParams asked =
        ChatCompletionCreateParams.builder().model("gpt-5").addUserMessage(QUESTION).build();
    FunctionDefinition weather = FunctionDefinition.builder().name("weather").build();
    ChatCompletionCreateParams tools =
        ChatCompletionCreateParams.builder()
            .model("gpt-5")
            .addUserMessage(WEATHER)
            .addTool(ChatCompletionFunctionTool.builder().function(weather).build())
            .build();
    FileCreateParams file =
        FileCreateParams.builder().purpose(FilePurpose.USER_DATA).file("hello".getBytes()).build();
    var chat = client.chat().completions();
    return Map.of(
        "plain", () -> chat.create(asked).choices().get(0).message().content().get(),
        "stream",
            () -> {
              try (var chunks = chat.createStreaming(asked)) {
                return chunks.stream()
                    .flatMap(chunk -> chunk.choices().stream())
                    .map(choice -> choice.delta().content().orElse(""))
                    .collect(Collectors.joining());
              }
            },
        "tools",
            () ->
                chat.create(tools).choices().get(0).message().toolCalls().get().get(0).asFunction()
                    .function().name(),
        "upload", () -> client.files().retrieve(client.files().create(file).id()).id());
  }
}
