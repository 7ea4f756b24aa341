// Check that transformers.js and transformers have the same scores.
//
// node with_transformers_js.cjs FOLDER EXPECTED_SCORES
const path = require("node:path");
const { env, pipeline } = require("@huggingface/transformers");

async function main(folder, expected) {
  env.allowRemoteModels = false;
  env.localModelPath = path.dirname(folder);
  const options = { subfolder: "", dtype: "fp32" };
  const classify = await pipeline("text-classification", path.basename(folder), options);
  for (const [text, label, score] of expected) {
    const [found] = await classify(text);
    if (found.label !== label || Math.abs(found.score - score) > 1e-5) {
      throw new Error(`${text}: ${JSON.stringify(found)}; expected ${label} ${score}`);
    }
  }
}

main(process.argv[2], JSON.parse(process.argv[3]));
