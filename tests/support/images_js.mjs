// Answers a prompt about an image with transformers.js: node images_js.mjs MODULES BUNDLE TOKENS
// FEEDS, a JSON file of tensors by name, each [type, dims, data]; prints the prompt and its answer.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [modules, bundle, tokens, path] = process.argv.slice(2);
const found = createRequire(`${modules}/`).resolve('@huggingface/transformers');
const { AutoModelForImageTextToText, AutoModelForVision2Seq, Tensor, env } = await import(
  pathToFileURL(found).href
);
env.allowRemoteModels = false;
env.localModelPath = '/';
const options = { subfolder: '', dtype: 'fp32', device: 'cpu' };
const feeds = Object.entries(JSON.parse(readFileSync(path))).map(([name, [type, dims, data]]) => {
  const array = type === 'int64' ? BigInt64Array.from(data, BigInt) : Float32Array.from(data);
  return [name, new Tensor(type, array, dims)];
});
const kind = feeds.some(([name]) => name === 'input_ids')
  ? AutoModelForImageTextToText
  : AutoModelForVision2Seq;
const model = await kind.from_pretrained(bundle, options);
const text = await model.generate({
  ...Object.fromEntries(feeds),
  max_new_tokens: Number(tokens),
  min_new_tokens: Number(tokens),
  do_sample: false,
});
console.log(JSON.stringify(Array.from(text.data, Number)));
