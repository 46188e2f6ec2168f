/* Holds a conversation on the starter for Node, from its folder:
   node conversation.mjs MOST TEMPERATURE SEED STOP PROMPTS
   Prints for each turn the tokens read, those written, and the text's bytes, as conversation.c does. */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.cwd()}/`);
const ort = require("onnxruntime-node"), { Tokenizer } = require("@huggingface/tokenizers");
const { Model } = await import(pathToFileURL("model.mjs"));
const read = (name) => JSON.parse(readFileSync(name, "utf8"));
const [most, temperature, seed, stop, ...prompts] = process.argv.slice(2);
const app = read("app.json");
const session = await ort.InferenceSession.create(app.model, Model.options(app));
const files = [read("model/tokenizer.json"), read("model/tokenizer_config.json")];
const model = new Model(ort, session, Tokenizer, app, ...files);
const options = { max_new_tokens: +most, temperature: +temperature, seed: +seed, stop_strings: [stop] };
for (const prompt of prompts) {
  let text = "";
  for await (const piece of model.answer(prompt, options)) text += piece;
  process.stdout.write(`${model.read}\x1f${model.written.join(" ")}\x1f${Buffer.from(text).toString("hex")}\x1e`);
}
