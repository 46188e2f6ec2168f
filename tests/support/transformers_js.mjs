// Reads a bundle with transformers.js: node transformers_js.mjs MODULES BUNDLE PROMPT TOKENS
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [modules, bundle, content, tokens] = process.argv.slice(2);
const found = createRequire(`${modules}/`).resolve('@huggingface/transformers');
const { AutoModelForCausalLM, AutoTokenizer, env } = await import(pathToFileURL(found).href);
env.allowRemoteModels = false;
env.localModelPath = '/';
const options = { subfolder: '', dtype: 'fp32', device: 'cpu' };
const model = await AutoModelForCausalLM.from_pretrained(bundle, options);
const tokenizer = await AutoTokenizer.from_pretrained(bundle);
const prompt = tokenizer.apply_chat_template([{ role: 'user', content }], {
  add_generation_prompt: true,
  return_dict: true,
});
const length = prompt.input_ids.dims[1];
const told = { ...prompt, max_new_tokens: Number(tokens), min_new_tokens: Number(tokens) };
const text = await model.generate({ ...told, do_sample: false });
console.log(JSON.stringify(Array.from(text.data, Number).slice(length)));
