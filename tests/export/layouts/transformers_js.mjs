// Answers each line of stdin with the model in a folder, by transformers.js: node transformers_js.mjs PARENT NAME TOKENS
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const [parent, name, tokens] = process.argv.slice(2);
// the package is installed where the caller stands, not beside this file
const found = createRequire(`${process.cwd()}/`).resolve('@huggingface/transformers');
const { AutoTokenizer, AutoModelForSeq2SeqLM, env } = await import(pathToFileURL(found));
env.allowRemoteModels = false;
env.localModelPath = parent;
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForSeq2SeqLM.from_pretrained(name, { dtype: 'fp32' });
for await (const line of createInterface({ input: process.stdin })) {
  const made = await model.generate({ ...(await tokenizer(line)), max_new_tokens: Number(tokens) });
  console.log(JSON.stringify(tokenizer.batch_decode(made, { skip_special_tokens: true })[0]));
}
