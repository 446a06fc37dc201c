// C++, ONNX Runtime: a sequence chunk by chunk, through a file with its states as inputs and outputs.
//   g++ -std=c++17 stream.cpp -I include -l onnxruntime -o stream && ./stream small.onnx 40 3 < frames.f32 > scores.f32
#include <onnxruntime_cxx_api.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 4) return std::fputs("usage: stream MODEL FEATURES FRAMES_OF_A_CHUNK\n", stderr), 2;
  const int64_t features = std::atoi(argv[2]), frames = std::atoi(argv[3]);
  Ort::Env env;
  Ort::Session session(env, argv[1], Ort::SessionOptions{});
  Ort::AllocatorWithDefaultOptions allocator;
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);

  std::vector<std::string> names;
  std::vector<Ort::Value> inputs;
  std::vector<const char*> given, wanted;
  for (size_t i = 0; i < session.GetInputCount(); ++i) names.push_back(session.GetInputNameAllocated(i, allocator).get());
  for (size_t i = 0; i < session.GetOutputCount(); ++i) names.push_back(session.GetOutputNameAllocated(i, allocator).get());
  for (size_t i = 0; i < names.size(); ++i) (i < session.GetInputCount() ? given : wanted).push_back(names[i].c_str());

  // The frames of a chunk, and the states after them, which begin as zeros. Free sizes are negative, and 1 for one sequence.
  std::vector<float> chunk(frames * features);
  inputs.emplace_back(nullptr);
  for (size_t i = 1; i < session.GetInputCount(); ++i) {
    auto type = session.GetInputTypeInfo(i);
    auto shape = type.GetTensorTypeAndShapeInfo().GetShape();
    size_t count = 1;
    for (auto& size : shape) count *= size = size < 0 ? 1 : size;
    inputs.push_back(Ort::Value::CreateTensor<float>(allocator, shape.data(), shape.size()));
    std::fill_n(inputs.back().GetTensorMutableData<float>(), count, 0.0f);
  }
  while (size_t read = std::fread(chunk.data(), features * sizeof(float), frames, stdin)) {
    const int64_t shape[] = {1, static_cast<int64_t>(read), features};
    inputs[0] = Ort::Value::CreateTensor<float>(memory, chunk.data(), read * features, shape, 3);
    auto outputs = session.Run(Ort::RunOptions{}, given.data(), inputs.data(), given.size(), wanted.data(), wanted.size());
    const size_t count = outputs[0].GetTensorTypeAndShapeInfo().GetElementCount();
    std::fwrite(outputs[0].GetTensorData<float>(), sizeof(float), count, stdout);
    for (size_t i = 1; i < inputs.size(); ++i) inputs[i] = std::move(outputs[i]);
  }
}
