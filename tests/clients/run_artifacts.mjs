// node run_artifacts.mjs node|wasm < job.json > results.json
//
// job: { artifacts: {label: folder}, conversations: [{messages, tools}], prompts: [[id]], follow_up: [id],
//        max_new_tokens, pad_token_id }
// results: { versions, artifacts: {label: {...} or {error}} }; see `run` for what each artifact gives.

import { loadLibrary, version } from './transformers_js.mjs';

const { library, locate } = await loadLibrary(process.argv[2]);
const { AutoModelForCausalLM, AutoTokenizer, DynamicCache, Tensor, TextGenerationPipeline } = library;

const numbers = (tensor) => tensor.tolist().map((row) => row.map(Number));
const matrix = (rows) => new Tensor('int64', BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0].length]);

/** The new tokens of each row of `rows`, which are padded to one length on `side`. */
async function greedy(model, rows, job, side = 'left', more = {}) {
    const width = Math.max(...rows.map((row) => row.length));
    const padded = (row, fill) => {
        const padding = Array(width - row.length).fill(fill);
        return side === 'left' ? [...padding, ...row] : [...row, ...padding];
    };
    const output = await model.generate({
        input_ids: matrix(rows.map((row) => padded(row, job.pad_token_id))),
        attention_mask: matrix(rows.map((row) => padded(row.map(() => 1), 0))),
        max_new_tokens: job.max_new_tokens,
        do_sample: false,
        ...more,
    });
    return numbers(output).map((row) => row.slice(width));
}

/** First and second turn over one cache: the second call computes only what the first has not seen. */
async function twoTurns(model, prompt, job) {
    const past_key_values = new DynamicCache();
    const [first] = await greedy(model, [prompt], job, 'left', { past_key_values });
    const seen = past_key_values.get_seq_length();
    const [second] = await greedy(model, [[...prompt, ...first, ...job.follow_up]], job, 'left', { past_key_values });
    return { first, seen, second };
}

async function run(folder, job) {
    const name = locate(folder);
    const tokenizer = await AutoTokenizer.from_pretrained(name);
    // The artifact itself says which dtype and data files it has.
    const model = await AutoModelForCausalLM.from_pretrained(name, { session_options: { intraOpNumThreads: 1 } });
    const render = ({ messages, tools }, options) =>
        tokenizer.apply_chat_template(messages, { tools: tools ?? null, add_generation_prompt: true, ...options });
    const alone = [];
    for (const prompt of job.prompts) alone.push((await greedy(model, [prompt], job))[0]);
    const generator = new TextGenerationPipeline({ task: 'text-generation', model, tokenizer });
    const [reply] = await generator(job.conversations[0].messages, { max_new_tokens: job.max_new_tokens });
    return {
        dtype: model.sessions.model.config.dtype,
        device: model.sessions.model.config.device,
        texts: job.conversations.map((conversation) => render(conversation, { tokenize: false })),
        ids: job.conversations.map((conversation) => numbers(render(conversation, { return_dict: true }).input_ids)[0]),
        alone,
        left_padded: await greedy(model, job.prompts, job, 'left'),
        right_padded: await greedy(model, job.prompts, job, 'right'),
        two_turns: await twoTurns(model, job.prompts[0], job),
        reply: reply.generated_text.at(-1).content,
    };
}

let input = '';
for await (const chunk of process.stdin) input += chunk;
const job = JSON.parse(input);
const results = {};
for (const [label, folder] of Object.entries(job.artifacts)) {
    const started = performance.now();
    try {
        results[label] = await run(folder, job);
    } catch (error) {
        results[label] = { error: error.stack ?? String(error) };
    }
    console.error(`${label}: ${Math.round(performance.now() - started)} ms`);
}
const versions = Object.fromEntries(
    ['@huggingface/transformers', 'onnxruntime-node', 'onnxruntime-web'].map((name) => [name, version(name)]),
);
process.stdout.write(JSON.stringify({ versions, artifacts: results }));
