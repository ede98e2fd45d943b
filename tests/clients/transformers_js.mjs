// transformers.js over onnxruntime-node, or over onnxruntime-web's wasm as in a browser, reading one artifact folder.

import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { setFlagsFromString } from 'node:v8';

const installed = (name) => path.join(path.dirname(new URL(import.meta.url).pathname), 'node_modules', name);
const imported = (file) => import(pathToFileURL(file).href);

/** The library for `runtime` ("node" | "wasm"), and `locate(folder)`: the name by which from_pretrained finds it. */
export async function loadLibrary(runtime) {
    return runtime === 'wasm' ? overWasm() : overNode();
}

/** Version of an installed package. */
export function version(name) {
    return createRequire(import.meta.url)(installed(`${name}/package.json`)).version;
}

async function overNode() {
    const library = await import('@huggingface/transformers');
    library.env.allowRemoteModels = false;
    library.env.localModelPath = '/';
    return { library, locate: (folder) => folder };
}

async function overWasm() {
    // The browser's build takes this process for a browser once it does not call itself Node.
    Object.defineProperty(process, 'release', { value: { ...process.release, name: 'browser' } });
    const library = await imported(installed('@huggingface/transformers/dist/transformers.web.js'));
    const { env } = library;
    // The build that transformers.js takes where there is no WebGPU.
    const wasm = (suffix) => pathToFileURL(installed(`onnxruntime-web/dist/ort-wasm-simd-threaded.${suffix}`)).href;
    // Optimizing the whole runtime takes a minute of two cores; a model this small does not need it.
    setFlagsFromString('--liftoff-only');
    env.backends.onnx.wasm.wasmPaths = { mjs: wasm('mjs'), wasm: wasm('wasm') };
    env.backends.onnx.wasm.numThreads = 1;
    env.useWasmCache = false;
    env.useBrowserCache = false;
    env.allowLocalModels = false;
    env.allowRemoteModels = true;
    env.remoteHost = 'http://artifacts.invalid/';
    env.remotePathTemplate = '{model}/';
    // A browser fetches an artifact's files from a web server; here they come from the disk. Model names hold no slash.
    const folders = new Map();
    env.fetch = async (url) => {
        const [name, ...file] = decodeURIComponent(new URL(url).pathname).slice(1).split('/');
        try {
            const content = await readFile(path.join(folders.get(name), ...file));
            return new Response(content, { headers: { 'content-length': String(content.length) } });
        } catch {
            return new Response(null, { status: 404 });
        }
    };
    const locate = (folder) => {
        const name = `artifact-${folders.size}`;
        folders.set(name, folder);
        return name;
    };
    return { library, locate };
}
