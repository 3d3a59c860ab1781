// A CUDA device that is not there: its tensors say cuda:0 and lie in main memory.
//
// Every operation on them runs torch's own CPU kernel on the same memory. What a real card refuses
// is refused (tensors of two devices, a CPU generator), what it counts is counted (bytes by the
// lifetime of their storage), and copies and waits are told to a listener.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

const c10::Device CARD(c10::DeviceType::CUDA, 0);

// ---- memory -------------------------------------------------------------------------------------

std::atomic<int64_t> live_bytes{0}, peak_bytes{0}, total_bytes{int64_t{80} << 30};

std::string in_mib(int64_t bytes) {
  return c10::str(static_cast<double>(bytes * 100 / (1 << 20)) / 100, " MiB");
}

void take(int64_t bytes) {
  const int64_t before = live_bytes.fetch_add(bytes);
  if (bytes && before + bytes > total_bytes) {
    live_bytes -= bytes;
    TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", in_mib(bytes),
                     ". The pretended GPU has a total capacity of ", in_mib(total_bytes), " of which ",
                     in_mib(total_bytes - before), " is free");
  }
  int64_t peak = peak_bytes;
  while (before + bytes > peak && !peak_bytes.compare_exchange_weak(peak, before + bytes)) {
  }
}

// The memory of one storage of the card: a CPU storage, and its bytes in the account.
struct Block {
  c10::Storage memory;
  int64_t bytes;
  ~Block() { live_bytes -= bytes; }
};

c10::DataPtr on_card(c10::Storage memory) {
  const auto bytes = static_cast<int64_t>(memory.nbytes());
  take(bytes);
  void* data = memory.mutable_data();
  return {data, new Block{std::move(memory), bytes}, [](void* block) { delete static_cast<Block*>(block); }, CARD};
}

c10::Storage make_cpu_storage(size_t bytes) {
  return c10::Storage(c10::Storage::use_byte_size_t(), bytes, c10::GetAllocator(c10::DeviceType::CPU), true);
}

struct CardAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override { return on_card(make_cpu_storage(bytes)); }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
CardAllocator card_allocator;
c10::AllocatorRegisterer<c10::DeviceType::CUDA> register_allocator(&card_allocator);

std::mutex pinned_lock;
std::set<const void*> pinned;

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto* storage = new c10::Storage(make_cpu_storage(bytes));
    const std::lock_guard lock(pinned_lock);
    pinned.insert(storage->data());
    return {storage->mutable_data(), storage, &release, c10::Device(c10::DeviceType::CPU)};
  }
  static void release(void* context) {
    auto* storage = static_cast<c10::Storage*>(context);
    {
      const std::lock_guard lock(pinned_lock);
      pinned.erase(storage->data());
    }
    delete storage;
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
PinnedAllocator pinned_allocator;

bool is_pinned(const void* data) {
  const std::lock_guard lock(pinned_lock);
  return pinned.count(data);
}

// ---- what is counted ----------------------------------------------------------------------------

using Listener = void (*)(const char* kind, const char* operation, int64_t bytes);
std::atomic<Listener> listener{nullptr};

void tell(const char* kind, const std::string& operation, int64_t bytes = 0) {
  if (const Listener function = listener) {
    function(kind, operation.c_str(), bytes);
  }
}

// The host waits for the device because it needs a number: a value, or a size that depends on values.
const std::set<std::string> WAITING = {
    "aten::_local_scalar_dense", "aten::equal",   "aten::is_nonzero",        "aten::masked_select",
    "aten::nonzero",             "aten::_unique", "aten::_unique2",          "aten::unique_consecutive",
    "aten::unique_dim",          "aten::bincount", "aten::repeat_interleave"};
// Their indices may be in main memory, and are copied then.
const std::set<std::string> INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_",
                                        "aten::_unsafe_index"};

// ---- CPU tensors and the card's on the same memory ----------------------------------------------

class Aliases {
 public:
  explicit Aliases(std::string operation) : operation_(std::move(operation)) {}

  // The same memory as a CPU tensor.
  at::Tensor to_cpu(const at::Tensor& tensor) {
    if (!tensor.defined() || tensor.is_cpu()) {
      return tensor;
    }
    TORCH_CHECK(tensor.is_cuda(), operation_, " of a tensor on ", tensor.device());
    const auto* own = tensor.storage().unsafeGetStorageImpl();
    auto found = cpu_of_card_.find(own);
    if (found == cpu_of_card_.end()) {
      auto* data = const_cast<void*>(own->data());
      c10::Storage alias(c10::Storage::use_byte_size_t(), own->nbytes(), c10::DataPtr(data, c10::Device(c10::kCPU)),
                         c10::GetAllocator(c10::DeviceType::CPU), true);
      found = cpu_of_card_.emplace(own, alias).first;
      card_of_cpu_.emplace(alias.unsafeGetStorageImpl(), tensor.storage());
    }
    return make(tensor, found->second, c10::DispatchKeySet(c10::DispatchKey::CPU));
  }

  // A result of the CPU kernel as a tensor of the card: a view of what came in, or new memory.
  at::Tensor to_card(const at::Tensor& tensor) {
    if (!tensor.defined() || tensor.is_cuda()) {
      return tensor;
    }
    const auto* own = tensor.storage().unsafeGetStorageImpl();
    auto found = card_of_cpu_.find(own);
    if (found == card_of_cpu_.end()) {
      found = card_of_cpu_.emplace(own, move_to_card(tensor.storage())).first;
    }
    return make(tensor, found->second, c10::DispatchKeySet(c10::DispatchKey::CUDA));
  }

  // The kernel may have given its output another size or memory.
  void update(const at::Tensor& tensor, const at::Tensor& alias) {
    if (!tensor.defined() || !tensor.is_cuda()) {
      return;
    }
    if (alias.storage().data() != tensor.storage().data() || alias.storage().nbytes() != tensor.storage().nbytes()) {
      tensor.unsafeGetTensorImpl()->set_storage_keep_dtype(move_to_card(alias.storage()));
    }
    if (alias.sizes() != tensor.sizes() || alias.strides() != tensor.strides() ||
        alias.storage_offset() != tensor.storage_offset()) {
      tensor.unsafeGetTensorImpl()->set_sizes_and_strides(alias.sizes(), alias.strides(), alias.storage_offset());
    }
  }

 private:
  static at::Tensor make(const at::Tensor& like, const c10::Storage& storage, c10::DispatchKeySet keys) {
    auto made = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), keys, like.dtype());
    made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
    return made;
  }

  static c10::Storage move_to_card(const c10::Storage& memory) {
    return c10::Storage(c10::Storage::use_byte_size_t(), memory.nbytes(), on_card(memory), &card_allocator, true);
  }

  std::string operation_;
  std::unordered_map<const c10::StorageImpl*, c10::Storage> cpu_of_card_, card_of_cpu_;
};

// ---- every operation ----------------------------------------------------------------------------

bool is_on_card(const c10::IValue& value) {
  if (value.isTensor()) {
    return value.toTensor().defined() && value.toTensor().is_cuda();
  }
  if (value.isDevice()) {
    return value.toDevice().is_cuda();
  }
  if (value.isList()) {
    for (const c10::IValue& each : value.toListRef()) {
      if (is_on_card(each)) {
        return true;
      }
    }
  }
  return false;
}

bool holds_tensors(const c10::IValue& value) {
  return value.isTensorList() || (value.isList() && value.toList().elementType()->isSubtypeOf(
                                                       c10::OptionalType::create(c10::TensorType::get())));
}

class Call {
 public:
  explicit Call(const c10::OperatorHandle& operation)
      : name_(operation.schema().name()), is_indexing_(INDEXING.count(name_)), aliases_(name_) {}

  c10::IValue to_cpu(const c10::IValue& value) {
    if (value.isTensor()) {
      check(value.toTensor());
      return aliases_.to_cpu(value.toTensor());
    }
    if (value.isTensorList()) {
      c10::List<at::Tensor> found;
      for (const at::Tensor& each : value.toTensorVector()) {
        check(each);
        found.push_back(aliases_.to_cpu(each));
      }
      return found;
    }
    if (holds_tensors(value)) {
      c10::List<std::optional<at::Tensor>> found;
      for (const c10::IValue& each : value.toListRef()) {
        found.push_back(each.isNone() ? std::nullopt : std::make_optional(to_cpu(each).toTensor()));
      }
      return found;
    }
    if (value.isDevice()) {
      return c10::Device(c10::kCPU);
    }
    if (value.isGenerator()) {
      const auto generator = value.toGenerator();
      TORCH_CHECK(!generator.defined() || generator.device().is_cuda(),
                  "Expected a 'cuda' device type for generator but found 'cpu' (", name_, ")");
    }
    return value;
  }

  c10::IValue to_card(const c10::IValue& value) {
    if (value.isTensor()) {
      return aliases_.to_card(value.toTensor());
    }
    if (value.isTensorList()) {
      c10::List<at::Tensor> found;
      for (const at::Tensor& each : value.toTensorVector()) {
        found.push_back(aliases_.to_card(each));
      }
      return found;
    }
    return value;
  }

  void update(const c10::IValue& given, const c10::IValue& alias) {
    if (given.isTensor()) {
      aliases_.update(given.toTensor(), alias.toTensor());
    } else if (given.isTensorList()) {
      const auto tensors = given.toTensorVector(), others = alias.toTensorVector();
      for (size_t i = 0; i < tensors.size(); ++i) {
        aliases_.update(tensors[i], others[i]);
      }
    }
  }

  void tell_waiting(const std::vector<c10::IValue>& arguments) const {
    // a mask in an index becomes numbers first; that of other operations is told by nonzero itself
    if (WAITING.count(name_) || (name_ == "aten::_index_put_impl_" && has_mask(arguments))) {
      tell("sync", name_);
    }
  }

 private:
  void check(const at::Tensor& tensor) const {
    if (!tensor.defined() || !tensor.is_cpu() || tensor.dim() == 0) {
      return;  // as on a real card, a number may come from main memory
    }
    TORCH_CHECK(is_indexing_, "Expected all tensors to be on the same device, but found at least two devices, cuda:0 "
                "and cpu! (", name_, " of a CPU tensor ", tensor.sizes(), ")");
    tell("to_device", name_, static_cast<int64_t>(tensor.nbytes()));
  }

  static bool has_mask(const std::vector<c10::IValue>& arguments) {
    for (const c10::IValue& each : arguments.at(1).toListRef()) {
      if (each.isTensor() && each.toTensor().defined() &&
          (each.toTensor().scalar_type() == at::kBool || each.toTensor().scalar_type() == at::kByte)) {
        return true;
      }
    }
    return false;
  }

  std::string name_;
  bool is_indexing_;
  Aliases aliases_;
};

void run_on_cpu(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  const auto& schema = operation.schema();
  const size_t num_arguments = schema.arguments().size();
  const std::vector<c10::IValue> given(stack->end() - static_cast<std::ptrdiff_t>(num_arguments), stack->end());
  Call call(operation);
  call.tell_waiting(given);
  std::vector<c10::IValue> aliases;
  for (const c10::IValue& value : given) {
    aliases.push_back(call.to_cpu(value));
  }
  torch::jit::drop(*stack, num_arguments);
  stack->insert(stack->end(), aliases.begin(), aliases.end());
  operation.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  const size_t first_result = stack->size() - schema.returns().size();
  for (size_t i = 0; i < num_arguments; ++i) {
    const auto* changes = schema.arguments()[i].alias_info();
    if (changes == nullptr || !changes->isWrite()) {
      continue;
    }
    call.update(given[i], aliases[i]);
    for (size_t result = 0; result < schema.returns().size(); ++result) {
      const auto* returned = schema.returns()[result].alias_info();
      if (returned != nullptr && *returned == *changes) {
        (*stack)[first_result + result] = given[i];
      }
    }
  }
  for (size_t result = first_result; result < stack->size(); ++result) {
    (*stack)[result] = call.to_card((*stack)[result]);
  }
}

// ---- operations that are about devices and memory themselves ------------------------------------

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &card_allocator,
                                   c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                                           &card_allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           c10::dtype_or_default(dtype));
}

// A copy from pinned memory, or into it, does not wait if it need not.
at::Tensor& copy_(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (from.numel() && to.device() != from.device()) {
    const at::Tensor& host = to.is_cuda() ? from : to;
    const bool waits = !(non_blocking && is_pinned(host.storage().data()));
    const auto bytes = static_cast<int64_t>(from.nbytes());
    tell(to.is_cuda() ? (waits ? "to_device" : "to_device_async") : (waits ? "to_host" : "to_host_async"),
         "aten::copy_", bytes);
  }
  Aliases aliases("aten::copy_");
  at::Tensor target = aliases.to_cpu(to);
  const c10::impl::ExcludeDispatchKeyGuard below(c10::autograd_dispatch_keyset);
  target.copy_(aliases.to_cpu(from));
  return to;
}

at::Tensor& set_storage(at::Tensor& tensor, c10::Storage storage, c10::SymInt offset, c10::SymIntArrayRef size,
                        c10::SymIntArrayRef stride) {
  TORCH_CHECK(storage.device().is_cuda(), "set_: a tensor on cuda:0 cannot use memory of ", storage.device());
  auto* own = tensor.unsafeGetTensorImpl();
  own->set_storage_keep_dtype(std::move(storage));
  if (stride.empty() && !size.empty()) {
    own->set_storage_offset(offset.expect_int());
    own->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  } else {
    own->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), offset.expect_int());
  }
  return tensor;
}

at::Tensor& set_tensor(at::Tensor& tensor, const at::Tensor& source) {
  return set_storage(tensor, source.storage(), source.sym_storage_offset(), source.sym_sizes(), source.sym_strides());
}

at::Tensor& set_nothing(at::Tensor& tensor) {
  const c10::Storage storage(c10::Storage::use_byte_size_t(), 0, card_allocator.allocate(0), &card_allocator, true);
  return set_storage(tensor, storage, 0, {0}, {});
}

// 1 is flash attention, 0 the plain product, which keeps the whole matrix.
int64_t choose_attention(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>& mask,
                         double dropout, bool, std::optional<double>, bool) {
  return dropout == 0 && !(mask && mask->defined()) ? 1 : 0;
}

using Attention =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, c10::SymInt, c10::SymInt, at::Tensor, at::Tensor, at::Tensor>;

Attention attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, double dropout, bool causal,
                 bool, std::optional<double> scale) {
  auto [output, logsumexp] =
      at::_scaled_dot_product_flash_attention_for_cpu(query, key, value, dropout, causal, {}, scale);
  const at::Tensor none = at::empty({0}, query.options());
  return {output, logsumexp, none, none, query.sym_size(2), key.sym_size(2), none, none, none};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_backward(
    const at::Tensor& gradient, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& output, const at::Tensor& logsumexp, const at::Tensor&, const at::Tensor&, c10::SymInt,
    c10::SymInt, double dropout, bool causal, const at::Tensor&, const at::Tensor&, std::optional<double> scale) {
  return at::_scaled_dot_product_flash_attention_for_cpu_backward(gradient, query, key, value, output, logsumexp,
                                                                  dropout, causal, {}, scale);
}

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("copy_", &copy_);
  library.impl("set_.source_Storage_storage_offset", &set_storage);
  library.impl("set_.source_Tensor", &set_tensor);
  library.impl("set_", &set_nothing);
  library.impl("_fused_sdp_choice", &choose_attention);
  library.impl("_scaled_dot_product_flash_attention", &attend);
  library.impl("_scaled_dot_product_flash_attention_backward", &attend_backward);
  // torch has a general form of these, which asks for CUDA's own kernels or keeps more than they do
  for (const char* name : {"convolution", "convolution_backward", "_convolution", "native_group_norm",
                           "native_group_norm_backward", "native_layer_norm", "native_layer_norm_backward",
                           "silu_backward", "_fused_rms_norm", "_fused_rms_norm_backward"}) {
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
  }
}

// ---- the device itself --------------------------------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, CARD); }
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return CARD; }
  c10::Device getDevice() const override { return CARD; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int = 0) const override { return stream(); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool = false) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    *event = const_cast<c10::Device*>(&CARD);  // anything but a null pointer: the event was recorded
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void synchronizeEvent(void*) const override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  bool isStreamCapturing(const c10::Stream&) const override { return false; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
Guard guard;
c10::impl::DeviceGuardImplRegistrar register_guard(c10::DeviceType::CUDA, &guard);

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  bool hasCUDA() const override { return true; }
  c10::DeviceIndex current_device() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  void deviceSynchronize(c10::DeviceIndex) const override { tell("sync", "synchronize"); }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
};
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", Hooks);

}  // namespace

extern "C" {
void card_listen(Listener function) { listener = function; }
int64_t card_live_bytes() { return live_bytes; }
int64_t card_peak_bytes() { return peak_bytes; }
int64_t card_total_bytes() { return total_bytes; }
void card_reset_peak() { peak_bytes = live_bytes.load(); }
void card_set_total(int64_t bytes) { total_bytes = bytes; }
}
