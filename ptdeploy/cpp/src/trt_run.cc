#include "trt_run.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <new>

namespace ptdeploy::detail {
namespace {

// Enqueued plainly this often before it is recorded: the first runs may still prepare kernels.
constexpr int kBeforeCapture = 2;
// setTensorAddress asks for it.
constexpr std::size_t kAlignment = 256;

std::size_t bytes_of(const Bound& bound) {
  std::size_t bytes = bytes_of(bound.type);
  for (std::int64_t size : bound.shape) bytes *= static_cast<std::size_t>(size);
  return bytes;
}

// TensorRT-RTX can be asked; full TensorRT's contexts are always.
template <class Context>
auto capturable(Context& context, cudaStream_t stream, int)
    -> decltype(context.isStreamCapturable(stream), bool{}) {
  return context.isStreamCapturable(stream);
}
template <class Context>
bool capturable(Context&, cudaStream_t, long) {
  return true;
}

std::string sizes_text(const std::vector<std::int64_t>& shape) {
  std::string out;
  for (std::int64_t size : shape) out += (out.empty() ? "" : ", ") + std::to_string(size);
  return "[" + out + "]";
}

std::vector<std::int64_t> shape_of(const nvinfer1::Dims& dims) {
  return std::vector<std::int64_t>(dims.d, dims.d + std::max(dims.nbDims, 0));
}

bool set_shape(nvinfer1::IExecutionContext& context, const std::string& name,
               const std::vector<std::int64_t>& shape) {
  nvinfer1::Dims dims{};
  if (shape.size() > std::size(dims.d)) return false;
  dims.nbDims = static_cast<std::int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), dims.d);
  return context.setInputShape(name.c_str(), dims);
}

}  // namespace

TrtStaging::TrtStaging(const std::vector<Bound>& bounds) {
  for (const Bound& bound : bounds) {
    if (bound.placed) continue;
    const std::size_t bytes = bytes_of(bound);
    pieces_.push_back({bound.name, static_cast<char*>(bound.data), size_, bytes});
    size_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }
  try {
    pinned_ = cuda::pinned_memory(size_);
    device_ = cuda::device_memory(size_);
  } catch (const std::bad_alloc&) {
    throw too_large_for_gpu("the GPU has no memory left");
  }
}

char* TrtStaging::address(const Bound& bound) const {
  if (bound.placed) return static_cast<char*>(bound.data);
  auto found = std::find_if(pieces_.begin(), pieces_.end(),
                            [&bound](const Piece& piece) { return piece.name == bound.name; });
  return device_.get() + found->offset;
}

void TrtStaging::gather() {
  for (const Piece& piece : pieces_)
    std::memcpy(pinned_.get() + piece.offset, piece.data, piece.bytes);
}

void TrtStaging::scatter() {
  for (const Piece& piece : pieces_)
    std::memcpy(piece.data, pinned_.get() + piece.offset, piece.bytes);
}

void TrtStaging::upload(cuda::Stream& stream) const {
  if (size_ > 0) stream.upload(device_.get(), pinned_.get(), size_);
}

void TrtStaging::download(cuda::Stream& stream) const {
  if (size_ > 0) stream.download(pinned_.get(), device_.get(), size_);
}

TrtRun::TrtRun(TrtEngine& engine, int device, const std::vector<Bound>& inputs,
               const std::vector<Bound>& outputs)
    : engine_(engine), device_(device), in_(inputs), out_(outputs) {
  NamedShapes shapes;
  for (const Bound& bound : inputs) {
    add(bound, in_, false);
    shapes.emplace_back(bound.name, bound.shape);
  }
  for (const Bound& bound : outputs) add(bound, out_, true);
  if (tensors_.size() != engine.tensors().size())
    throw BundleError("The engine has " + std::to_string(engine.tensors().size()) +
                      " tensors, but the manifest lists " + std::to_string(tensors_.size()) + ".");
  check_aliases();
  profile_ = choose_profile(engine.profiles(), shapes);
}

void TrtRun::add(const Bound& bound, const TrtStaging& staging, bool output) {
  auto found = engine_.tensors().find(bound.name);
  if (found == engine_.tensors().end() || found->second.output != output)
    throw BundleError("The engine has no tensor " + bound.name + ", which the manifest lists.");
  if (found->second.type != bound.type)
    throw BundleError("The engine has " + bound.name + " in " + name_of(found->second.type) +
                      ", but the manifest in " + name_of(bound.type) + ".");
  char* address = staging.address(bound);
  if (reinterpret_cast<std::uintptr_t>(address) % kAlignment != 0)
    throw InputError("A row of the KV buffer does not begin at a multiple of " +
                         std::to_string(kAlignment) + " bytes, as TensorRT needs it to.",
                     "Send one row at once, or compile again: a --max-context that fits is said "
                     "there.");
  tensors_.push_back({bound.name, bound.shape, address, output});
}

void TrtRun::check_aliases() const {
  auto address = [this](const std::string& name) {
    auto found = std::find_if(tensors_.begin(), tensors_.end(),
                              [&name](const Tensor& one) { return one.name == name; });
    return found == tensors_.end() ? nullptr : found->address;
  };
  for (const auto& [name, tensor] : engine_.tensors()) {
    if (!tensor.output) continue;
    if (!tensor.aliased.empty() && address(name) != address(tensor.aliased))
      throw BundleError("The engine updates " + tensor.aliased + " in place, but " + name +
                        " lies elsewhere.");
    const char* own = address(name);
    const bool shared = std::any_of(tensors_.begin(), tensors_.end(), [own](const Tensor& one) {
      return !one.output && one.address == own;
    });
    if (shared && tensor.aliased.empty())
      throw BundleError("The engine does not update " + name + " in place.");
  }
}

TrtRun::~TrtRun() {
  if (!lane_) return;
  // A run that failed may still be copying from memory that goes with this one.
  cudaStreamSynchronize(lane_->stream.get());
  graph_.reset();
  engine_.give_back(std::move(lane_));
}

std::unique_ptr<TrtLane> TrtRun::prepare() {
  auto lane = engine_.take(profile_);
  for (const Tensor& one : tensors_)
    if (!one.output && !set_shape(*lane->context, one.name, one.shape))
      throw InputError("The engine refuses " + one.name + " of shape " + sizes_text(one.shape) + ".");
  for (const Tensor& one : tensors_) {
    // It writes as much as it likes where the address points.
    const auto shape = shape_of(lane->context->getTensorShape(one.name.c_str()));
    if (one.output && shape != one.shape)
      throw BundleError("The engine gives " + one.name + " of shape " + sizes_text(shape) +
                        ", but the manifest says " + sizes_text(one.shape) + ".");
    if (!lane->context->setTensorAddress(one.name.c_str(), one.address))
      throw EngineFault(trt_name() + " refuses an address (" + engine_.last_error() + ").");
  }
  return lane;
}

void TrtRun::operator()() {
  const cuda::Use use(device_);
  if (!lane_) lane_ = prepare();
  cuda::Stream& stream = lane_->stream;
  in_.gather();
  if (runs_ == kBeforeCapture) record();
  if (runs_ <= kBeforeCapture) ++runs_;
  if (graph_)
    graph_->launch(stream.get());
  else
    work();
  stream.wait();
  out_.scatter();
}

// Once: a step that cannot be one graph goes on step by step. One that fails by itself fails again,
// run plainly.
void TrtRun::record() {
  cuda::Stream& stream = lane_->stream;
  if (!capturable(*lane_->context, stream.get(), 0)) return;
  try {
    graph_ = stream.capture([this] { work(); });
  } catch (const EngineFault&) {
  } catch (const std::bad_alloc&) {
  }
}

void TrtRun::work() {
  in_.upload(lane_->stream);
  engine_.enqueue(*lane_);
  out_.download(lane_->stream);
}

}  // namespace ptdeploy::detail
