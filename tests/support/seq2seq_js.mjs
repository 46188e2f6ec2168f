// Reads an encoder-decoder bundle with transformers.js: node seq2seq_js.mjs MODULES BUNDLE TOKENS
// PROMPT, as JSON; prints the answer's tokens behind the start.
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [modules, bundle, tokens, prompt] = process.argv.slice(2);
const found = createRequire(`${modules}/`).resolve('@huggingface/transformers');
const { AutoModelForSeq2SeqLM, Tensor, env } = await import(pathToFileURL(found).href);
env.allowRemoteModels = false;
env.localModelPath = '/';
const options = { subfolder: '', dtype: 'fp32', device: 'cpu' };
const model = await AutoModelForSeq2SeqLM.from_pretrained(bundle, options);
const ids = BigInt64Array.from(JSON.parse(prompt), BigInt);
const shape = [1, ids.length];
const text = await model.generate({
  input_ids: new Tensor('int64', ids, shape),
  attention_mask: new Tensor('int64', ids.map(() => 1n), shape),
  max_new_tokens: Number(tokens),
  min_new_tokens: Number(tokens),
  do_sample: false,
});
console.log(JSON.stringify(Array.from(text.data, Number)));
