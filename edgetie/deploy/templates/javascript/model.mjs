/* Runs the model: reads a prompt and streams text. Expects the module of onnxruntime-node or
   onnxruntime-web as `ort`, and the class Tokenizer of @huggingface/tokenizers. */

export class Model {
  /** `app`, `tokenizer`, `config`: app.json, tokenizer.json and tokenizer_config.json, parsed. */
  constructor(ort, session, Tokenizer, app, tokenizer, config) {
    this.ort = ort;
    this.session = session;
    this.app = app;
    this.tokenizer = new Tokenizer(tokenizer, config);
  }

  /** The options of a session, except the device. */
  static options(app) {
    const level = app.optimize ? {} : { graphOptimizationLevel: "disabled" };
    return { enableMemPattern: false, ...level };
  }

  /** Token ids of a prompt, with the text that the model expects around it. */
  encode(prompt) {
    if (this.app.trim) prompt = prompt.trim();
    const text = this.app.before_prompt + prompt + this.app.after_prompt;
    const { ids } = this.tokenizer.encode(text, { add_special_tokens: false });
    return [...this.app.prefix, ...ids, ...this.app.suffix];
  }

  /** Whether a token ends the text; such a token is not shown. */
  ends(token) {
    return this.app.stop_tokens.includes(token);
  }

  /** Streams the most likely tokens after a prompt, up to one of `stops`. */
  async *tokens(prompt, most, stops = this.app.stop_tokens) {
    let ids = prompt, seen = 0;
    if (!ids.length) throw new Error("the prompt has no tokens");
    if (!(most >= 1)) throw new Error(`${most}: not a number of tokens`);
    let cache = this.#emptyCache();
    const longest = this.app.max_positions ?? Infinity;
    if (ids.length > longest) {
      throw new Error(`the prompt has ${ids.length} tokens, the model takes ${longest}`);
    }
    for (let count = 0; count < most && seen + ids.length <= longest; count++) {
      const first = seen;
      seen += ids.length;
      const feeds = { ...cache };
      const values = {
        input_ids: () => ids,
        attention_mask: () => Array(seen).fill(1),
        position_ids: () => ids.map((_, i) => first + i),
      };
      for (const name of this.app.inputs) feeds[name] = this.#int64(values[name]());
      const results = await this.session.run(feeds);
      for (const name of this.app.cache) {
        feeds[`past_key_values.${name}`].dispose?.();
        cache[`past_key_values.${name}`] = results[`present.${name}`];
      }
      const { data } = results.logits;
      const token = likeliest(data, data.length - this.app.vocabulary);
      results.logits.dispose?.();
      yield token;
      if (stops.includes(token)) break;
      ids = [token];
    }
    for (const tensor of Object.values(cache)) tensor.dispose?.();
  }

  /** Streams the text of the answer to a prompt. */
  async *answer(prompt, most) {
    const tokens = [];
    let shown = 0;
    for await (const token of this.tokens(this.encode(prompt), most)) {
      if (this.ends(token)) break;
      tokens.push(token);
      const text = this.tokenizer.decode(tokens, { skip_special_tokens: true });
      if (text.endsWith("\ufffd")) continue; // an incomplete character
      yield text.slice(shown);
      shown = text.length;
    }
    if (tokens.length) yield this.tokenizer.decode(tokens, { skip_special_tokens: true }).slice(shown);
  }

  #int64(values) {
    return new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  }

  #emptyCache() {
    const { cache, cache_heads: heads, cache_size: size, cache_dtype: dtype } = this.app;
    const [type, Values] = { float: ["float32", Float32Array], int8: ["int8", Int8Array] }[dtype];
    const empty = (name) => [
      `past_key_values.${name}`,
      new this.ort.Tensor(type, new Values(0), [1, heads, 0, size]),
    ];
    return Object.fromEntries(cache.map(empty));
  }
}

function likeliest(values, start) {
  let best = start;
  for (let i = start + 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best - start;
}
