// What an application does with the OpenAI SDK for Node: one function for each test, whose result is printed as JSON.

import OpenAI from "openai";

const [baseURL, apiKey, scenario] = process.argv.slice(2);
const openai = new OpenAI({ baseURL, apiKey, maxRetries: 0 });

const messages = [{ role: "user", content: "hello" }];
const weather = {
  type: "function",
  function: { name: "get_weather", parameters: { type: "object", properties: { city: { type: "string" } } } },
};

async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return { kind: error.constructor.name, status: error.status ?? null, code: error.code ?? null };
  }
  return null;
}

async function readAll(stream) {
  const texts = [];
  for await (const event of stream) texts.push(event.choices[0]?.delta.content ?? "");
  return texts;
}

const scenarios = {
  async chat() {
    const { data, response } = await openai.chat.completions.create({ model: "test", messages }).withResponse();
    return [data.choices[0].message.content, data.usage.total_tokens, response.headers.get("x-llmproxy-model")];
  },

  async stream() {
    return readAll(await openai.chat.completions.create({ model: "test", messages, stream: true }));
  },

  async usage() {
    const events = [];
    const asked = { model: "test", messages, stream: true, stream_options: { include_usage: true } };
    for await (const event of await openai.chat.completions.create(asked)) events.push(event);
    return [events.at(-1).choices, events.at(-1).usage.total_tokens];
  },

  async tools() {
    const asked = { model: "test", messages, tools: [weather] };
    const call = (await openai.chat.completions.create(asked)).choices[0].message;
    const result = { role: "tool", tool_call_id: call.tool_calls[0].id, content: "4" };
    const answer = await openai.chat.completions.create({ ...asked, messages: [...messages, call, result] });
    return [call.tool_calls[0].function, answer.choices[0].message.content];
  },

  async streamedTools() {
    const stream = openai.chat.completions.stream({ model: "test", messages, tools: [weather] });
    const completion = await stream.finalChatCompletion();
    return completion.choices[0].message.tool_calls.map((call) => call.function.arguments);
  },

  async embeddings() {
    const { data } = await openai.embeddings.create({ model: "test", input: ["a", "b"] });
    return data.map((item) => item.embedding);
  },

  async models() {
    const names = [];
    for await (const model of openai.models.list()) names.push(model.id);
    return [names, (await openai.models.retrieve("demo/echo")).owned_by];
  },

  async errors() {
    const chat = (model, options) => openai.chat.completions.create({ model, messages }, options);
    return {
      wrongKey: await failure(openai.withOptions({ apiKey: "sk-wrong" }).chat.completions.create({ model: "test", messages })),
      unknownModel: await failure(chat("demo/nothing/at/all")),
      badRequest: await failure(chat("demo/fail-400")),
      rateLimit: await failure(chat("demo/fail-429")),
      broken: await failure(chat("demo/error-in-200")),
      deadline: await failure(chat("demo/hang", { headers: { "x-llmproxy-timeout": "0.1" } })),
      ownTimeout: await failure(chat("demo/hang", { timeout: 200 })),
    };
  },

  async cut() {
    const stream = await openai.chat.completions.create({ model: "test", messages, stream: true });
    return failure(readAll(stream));
  },

  async retry() {
    const started = performance.now();
    const answer = await openai.chat.completions.create({ model: "test", messages }, { maxRetries: 1 });
    return [answer.choices[0].message.content, performance.now() - started];
  },
};

console.log(JSON.stringify(await scenarios[scenario]()));
