/* Answers a prompt: node app.mjs "What is the capital of France?" [most tokens] [--tokens] */
import { readFileSync } from "node:fs";
import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-node";
import { Model } from "./model.mjs";

const here = new URL("./", import.meta.url);
const read = (name) => JSON.parse(readFileSync(new URL(name, here), "utf8"));
const [prompt = "What is the capital of France?", most = "128", flag] = process.argv.slice(2);

const app = read("app.json");
// open the path, not the bytes: so the weights next to it are mapped
const path = decodeURIComponent(new URL(app.model, here).pathname);
const session = await ort.InferenceSession.create(path, Model.options(app));
const files = [read("model/tokenizer.json"), read("model/tokenizer_config.json")];
const model = new Model(ort, session, Tokenizer, app, ...files);

try {
  if (flag === "--tokens") {
    for await (const token of model.tokens(model.encode(prompt), +most, [])) console.log(token);
  } else {
    for await (const piece of model.answer(prompt, +most)) process.stdout.write(piece);
    console.log();
  }
} catch (error) {
  console.error(`app: ${error.message}`);
  process.exitCode = 1;
}
