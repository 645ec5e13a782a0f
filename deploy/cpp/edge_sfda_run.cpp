// Run an exported network on one picture: ONNX Runtime's C++ API alone, no Python, no torch.
//
//     edge_sfda_run [--provider cpu|cuda|tensorrt] MODEL.onnx FRAME.ppm MASK.pgm
//
// FRAME is a binary PPM (P6, 8 bit); MASK becomes a binary PGM of class ids, of the frame's size. The model carries all
// that stands before and after the network (`edge-sfda export`); its record says in which order it takes the colours.
// Exit codes: 0, 1 for a failure, 2 for wrong usage.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Frame {
    int64_t height = 0, width = 0;
    std::vector<uint8_t> pixels;  // [height, width, 3], RGB
};

constexpr int64_t kMaxSide = 8192;  // pixels; as the exporter has it

int64_t read_number(std::istream& in, const std::string& path) {
    while (in >> std::ws && in.peek() == '#') in.ignore(1 << 20, '\n');  // a comment
    int64_t value = 0;
    if (!(in >> value)) throw Failure(path + " is not a binary PPM: its header is cut short");
    return value;
}

Frame read_ppm(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    if (!in) throw Failure("cannot open frame " + path);
    std::string magic(2, ' ');
    in.read(magic.data(), 2);
    if (!in || magic != "P6") throw Failure(path + " is not a binary PPM (P6); convert it, with ffmpeg for one");
    Frame frame;
    frame.width = read_number(in, path);
    frame.height = read_number(in, path);
    const int64_t deepest = read_number(in, path);
    if (deepest != 255) throw Failure(path + " has " + std::to_string(deepest) + " as its largest value, expected 255");
    if (std::min(frame.width, frame.height) < 1 || std::max(frame.width, frame.height) > kMaxSide)
        throw Failure(path + " is " + std::to_string(frame.height) + "x" + std::to_string(frame.width) +
                      ", expected 1.." + std::to_string(kMaxSide) + " pixels a side");
    in.get();  // the one white space after the header
    frame.pixels.resize(static_cast<size_t>(frame.height * frame.width * 3));
    in.read(reinterpret_cast<char*>(frame.pixels.data()), static_cast<std::streamsize>(frame.pixels.size()));
    if (in.gcount() != static_cast<std::streamsize>(frame.pixels.size())) throw Failure(path + " is cut short");
    return frame;
}

void write_pgm(const std::string& path, const uint8_t* mask, int64_t height, int64_t width) {
    const std::string part = path + ".part";  // whole or not there
    std::ofstream out(part, std::ios::binary);
    out << "P5\n" << width << ' ' << height << "\n255\n";
    out.write(reinterpret_cast<const char*>(mask), height * width);
    out.close();
    if (!out || std::rename(part.c_str(), path.c_str()) != 0) {
        std::remove(part.c_str());
        throw Failure("cannot write mask " + path);
    }
}

// No silent fall-back: a provider that this library lacks is an error, as is one that does not start.
Ort::SessionOptions options_for(const std::string& provider) {
    Ort::SessionOptions options;
    if (provider == "cpu") return options;
    const std::string name = provider == "cuda" ? "CUDAExecutionProvider" : "TensorrtExecutionProvider";
    const auto offered = Ort::GetAvailableProviders();
    if (std::find(offered.begin(), offered.end(), name) == offered.end())
        throw Failure("this ONNX Runtime has no " + name + "; link the GPU build, or use --provider cpu");
    if (provider == "tensorrt") options.AppendExecutionProvider_TensorRT(OrtTensorRTProviderOptions{});
    options.AppendExecutionProvider_CUDA(OrtCUDAProviderOptions{});
    options.AddConfigEntry("session.disable_cpu_ep_fallback", "1");
    return options;
}

// The record is JSON that `edge-sfda export` wrote with sorted keys; one field of it is needed here.
bool takes_bgr(const Ort::Session& session, const std::string& path) {
    Ort::AllocatorWithDefaultOptions allocator;
    const auto record = session.GetModelMetadata().LookupCustomMetadataMapAllocated("edge_sfda", allocator);
    const std::string text = record ? record.get() : "";
    if (text.find("\"colour_order\": \"bgr\"") != std::string::npos) return true;
    if (text.find("\"colour_order\": \"rgb\"") != std::string::npos) return false;
    throw Failure(path + " carries no record of edge-sfda; export it with edge-sfda export");
}

void run(const std::string& provider, const std::string& model, const std::string& from, const std::string& to) {
    Frame frame = read_ppm(from);
    const Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "edge_sfda");
    Ort::Session session(env, model.c_str(), options_for(provider));
    if (takes_bgr(session, model))
        for (size_t i = 0; i < frame.pixels.size(); i += 3) std::swap(frame.pixels[i], frame.pixels[i + 2]);

    const std::vector<int64_t> shape{1, frame.height, frame.width, 3};
    const auto expected = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();  // -1: any
    for (size_t i = 1; i < expected.size() && i < shape.size(); ++i)
        if (expected[i] >= 0 && expected[i] != shape[i])
            throw Failure(from + " is " + std::to_string(frame.height) + "x" + std::to_string(frame.width) +
                          ", the model takes " + std::to_string(expected[1]) + "x" + std::to_string(expected[2]) +
                          "; resize the frame, or export with --size or --dynamic");
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto input = Ort::Value::CreateTensor<uint8_t>(memory, frame.pixels.data(), frame.pixels.size(),
                                                         shape.data(), shape.size());
    const char* inputs[] = {"frame"};
    const char* outputs[] = {"mask"};
    const auto found = session.Run(Ort::RunOptions{nullptr}, inputs, &input, 1, outputs, 1);
    write_pgm(to, found[0].GetTensorData<uint8_t>(), frame.height, frame.width);
}

}  // namespace

int main(int count, char** words) {
    std::vector<std::string> arguments(words + 1, words + count);
    std::string provider = "cpu";
    if (arguments.size() >= 2 && arguments[0] == "--provider") {
        provider = arguments[1];
        arguments.erase(arguments.begin(), arguments.begin() + 2);
    }
    if (arguments.size() != 3 || (provider != "cpu" && provider != "cuda" && provider != "tensorrt")) {
        std::cerr << "usage: edge_sfda_run [--provider cpu|cuda|tensorrt] MODEL.onnx FRAME.ppm MASK.pgm\n";
        return 2;
    }
    try {
        run(provider, arguments[0], arguments[1], arguments[2]);
    } catch (const std::exception& error) {  // Ort::Exception among them
        std::cerr << "error: " << error.what() << '\n';
        return 1;
    }
    return 0;
}
