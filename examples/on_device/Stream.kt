// Kotlin, ONNX Runtime (com.microsoft.onnxruntime:onnxruntime-android): a sequence chunk by chunk, through a file with its
// states as inputs and outputs.
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.TensorInfo
import java.nio.FloatBuffer

/** Scores of each chunk of frames, (time × features) floats one after the other. */
fun stream(model: ByteArray, features: Long, chunks: Sequence<FloatArray>): Sequence<FloatArray> = sequence {
    val env = OrtEnvironment.getEnvironment()
    env.createSession(model).use { session ->
        val outputs = session.outputNames.toList()
        // After the frames come the states. They begin as zeros; free sizes are negative, and 1 for one sequence.
        val names = session.inputNames.drop(1)
        var states = names.map { name ->
            val shape = (session.inputInfo.getValue(name).info as TensorInfo).shape.map { if (it < 0) 1 else it }
            FloatArray(shape.reduce(Long::times).toInt()) to shape.toLongArray()
        }
        for (frames in chunks) {
            val data = listOf(frames to longArrayOf(1, frames.size / features, features)) + states
            val tensors = data.map { (values, shape) -> OnnxTensor.createTensor(env, FloatBuffer.wrap(values), shape) }
            session.run((listOf("frames") + names).zip(tensors).toMap()).use { result ->
                fun floats(name: String) = (result.get(name).get() as OnnxTensor).floatBuffer.let { buffer ->
                    FloatArray(buffer.remaining()).also { buffer.get(it) }
                }
                states = outputs.drop(1).zip(states) { name, (_, shape) -> floats(name) to shape }
                yield(floats(outputs[0]))
            }
            tensors.forEach(OnnxTensor::close)
        }
    }
}
