// JavaScript, onnxruntime-web: a sequence chunk by chunk, through a file with its states as inputs and outputs.
import * as ort from "onnxruntime-web";

/** Scores of each chunk of frames, which are float32 tensors of [1, time, features]. */
export async function stream(model, chunks) {
  const session = await ort.InferenceSession.create(model);
  // After the frames come the states. They begin as zeros; sizes that are free have names, and are 1 for one sequence.
  let states = session.inputMetadata.slice(1).map(({ shape }) => {
    const sizes = shape.map((size) => (typeof size === "number" ? size : 1));
    return new ort.Tensor("float32", new Float32Array(sizes.reduce((a, b) => a * b)), sizes);
  });
  const scores = [];
  for (const frames of chunks) {
    const inputs = [frames, ...states];
    const outputs = await session.run(Object.fromEntries(session.inputNames.map((name, i) => [name, inputs[i]])));
    const [found, ...after] = session.outputNames.map((name) => outputs[name]);
    scores.push(Array.from(found.data));
    states = after;
  }
  return scores;
}
