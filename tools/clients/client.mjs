// Asks the door by the SDKs of Node: whole, streams, an upload, a stream that is left. Prints a line for each.
import { GoogleGenAI } from "@google/genai";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const [, , provider, door, calls] = process.argv;
const messages = [{ role: "user", content: "Hi" }];
const gemini = new GoogleGenAI({ apiKey: "keyrot-pool", httpOptions: { baseUrl: `${door}/gemini` } });
const openai = new OpenAI({ apiKey: "keyrot-pool", baseURL: `${door}/openai/v1`, maxRetries: 0 });
const anthropic = new Anthropic({ apiKey: "keyrot-pool", baseURL: `${door}/anthropic`, maxRetries: 0 });
const asked = { model: "gemini-3.8-flash", contents: "Hi" };
const claude = { model: "claude-sonnet-5", max_tokens: 9, messages };
const chat = { model: "gpt-5", messages };

const ways = {
  gemini: {
    whole: async () => (await gemini.models.generateContent(asked)).text,
    stream: async () => {
      let text = "";
      for await (const chunk of await gemini.models.generateContentStream(asked)) text += chunk.text ?? "";
      return text;
    },
  },
  openai: {
    whole: async () => (await openai.chat.completions.create(chat)).choices[0].message.content,
    stream: async () => {
      let text = "";
      for await (const event of await openai.chat.completions.create({ ...chat, stream: true }))
        text += event.choices[0]?.delta?.content ?? "";
      return text;
    },
  },
  anthropic: {
    whole: async () => (await anthropic.messages.create(claude)).content[0].text,
    stream: async () => {
      let text = "";
      for await (const event of await anthropic.messages.create({ ...claude, stream: true }))
        text += event.delta?.text ?? "";
      return text;
    },
  },
};

async function say(name, ask) {
  try {
    console.log(`${name}: ${await ask()}`);
  } catch (error) {
    console.log(`${name}: failed: ${error}`);
  }
}

for (let n = 0; n < calls; n++) await say(n % 2 ? "stream" : "whole", ways[provider][n % 2 ? "stream" : "whole"]);
if (provider === "gemini") {
  await say("upload", async () => {
    const file = await gemini.files.upload({ file: new Blob(["hello"]), config: { mimeType: "text/plain" } });
    return (await gemini.files.get({ name: file.name })).name;
  });
}
if (provider === "openai") {
  await say("left", async () => {
    const stream = await openai.chat.completions.create({ ...chat, stream: true });
    for await (const _ of stream) break;
    return "ok";
  });
}
