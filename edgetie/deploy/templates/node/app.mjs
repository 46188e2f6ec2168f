/* Converses with the model: node app.mjs "What is the capital of France?"
   Each prompt is a turn; without any, each line typed is one. Ctrl-C ends an answer. */
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-node";
import { Model } from "./model.mjs";

const NUMBERS = ["max-new-tokens", "temperature", "top-k", "top-p", "repetition-penalty", "seed"];
const here = new URL("./", import.meta.url);
let answering = false, stopped = false;

async function main() {
  const { prompts, options } = readOptions();
  const model = await open();
  process.on("SIGINT", () => (answering ? (stopped = true) : process.exit(130)));
  for await (const prompt of prompts.length ? prompts : lines()) {
    answering = true, stopped = false;
    for await (const text of model.answer(prompt, options)) {
      process.stdout.write(text);
      if (stopped) break;
    }
    answering = false;
    console.log();
  }
}

async function open() {
  const read = (name) => JSON.parse(readFileSync(new URL(name, here), "utf8"));
  const app = read("app.json");
  // open the path, not the bytes: so the weights next to it are mapped
  const path = fileURLToPath(new URL(app.model, here));
  const session = await ort.InferenceSession.create(path, Model.options(app));
  const files = [read("model/tokenizer.json"), read("model/tokenizer_config.json")];
  return new Model(ort, session, Tokenizer, app, ...files);
}

function readOptions() {
  const types = Object.fromEntries(NUMBERS.map((name) => [name, { type: "string" }]));
  const strings = { "stop-string": { type: "string", multiple: true } };
  const { values, positionals } = parseArgs({ options: { ...types, ...strings }, allowPositionals: true });
  const options = {};
  for (const name of NUMBERS.filter((name) => name in values)) {
    const value = +values[name];
    if (Number.isNaN(value)) throw new Error(`--${name} ${values[name]}: not a number`);
    options[name.replaceAll("-", "_")] = value;
  }
  if (values["stop-string"]) options.stop_strings = values["stop-string"];
  return { prompts: positionals, options };
}

/* Yields lines of the standard input that are not empty. */
async function* lines() {
  const input = createInterface({ input: process.stdin, terminal: false });
  const ask = () => process.stdin.isTTY && process.stdout.write("> ");
  ask();
  for await (const line of input) {
    if (line.trim()) yield line.trim();
    ask();
  }
}

main().catch((error) => {
  console.error(`app: ${error.message}`);
  process.exitCode = 1;
});
