#include "openvino_paged.hpp"

#include <openvino/frontend/manager.hpp>
#include <openvino/frontend/onnx/extension/conversion.hpp>
#include <openvino/opsets/opset13.hpp>

#include <cmath>
#include <map>
#include <optional>
#include <stdexcept>
#include <vector>

#include "layout.hpp"
#include "openvino_core.hpp"

namespace ptdeploy::detail {
namespace {

namespace op = ov::opset13;
using Port = ov::Output<ov::Node>;
using Node = std::shared_ptr<ov::Node>;

constexpr const char* kAttention = "GroupQueryAttention";
constexpr const char* kPaged = "PagedAttentionExtension";

// Where a GroupQueryAttention stood: its keys and values come in, and its output is taken.
struct Mark {
  Node joined, output;
  std::int64_t heads, kv_heads, size, window;
  float scale;
};
using Marks = std::vector<Mark>;

// Attention that cannot be paged. The frontend keeps no words of it.
class Unpaged : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

Port ints(const std::vector<std::int64_t>& values) {
  return op::Constant::create(ov::element::i64, ov::Shape{values.size()}, values)->output(0);
}

// An attribute as the operator has it: a size, or -1 where that is what is missing.
std::int64_t size_of_attention(const ov::frontend::NodeContext& node, const std::string& name,
                               std::optional<std::int64_t> missing = std::nullopt) {
  const std::int64_t value = missing ? node.get_attribute<std::int64_t>(name, *missing)
                                     : node.get_attribute<std::int64_t>(name);
  if (value != missing && (value < 1 || value > kMost))
    throw Unpaged("its attention's " + name + " must be from 1 to " +
                             std::to_string(kMost));
  return value;
}

std::int64_t width_of(const Port& tokens) {
  const ov::PartialShape shape = tokens.get_partial_shape();
  if (shape.rank().is_dynamic() || shape.size() == 0 || shape[shape.size() - 1].is_dynamic())
    throw Unpaged("how wide its attention's tokens are is not known");
  return shape[shape.size() - 1].get_length();
}

// Whether tokens are that wide; a product might not fit.
bool has_heads(const Port& tokens, std::int64_t heads, std::int64_t size) {
  const std::int64_t width = width_of(tokens);
  return width % heads == 0 && width / heads == size;
}

// What the frontend puts in the operator's place. Parameters may not be made while it converts. A
// slice of all that comes in has the output's shape, so that the shapes behind it stay known.
ov::OutputVector marked(const ov::frontend::NodeContext& node, Marks& marks) {
  if (node.get_attribute<float>("softcap", 0.f) != 0 ||
      node.get_attribute<std::int64_t>("do_rotary", 0) != 0 || node.get_input_size() > 7)
    throw Unpaged("a soft cap, a rotation, a bias or sinks are not carried over");
  const std::int64_t heads = size_of_attention(node, "num_heads"),
                     kv_heads = size_of_attention(node, "kv_num_heads"),
                     window = size_of_attention(node, "local_window_size", -1);
  const Port query = node.get_input(0), key = node.get_input(1), value = node.get_input(2);
  const std::int64_t width = width_of(query), size = width / heads;
  if (size < 1 || !has_heads(query, heads, size) || !has_heads(key, kv_heads, size) ||
      !has_heads(value, kv_heads, size))
    throw Unpaged("its attention's tokens are not as wide as their heads");
  const auto joined = std::make_shared<op::Concat>(ov::OutputVector{query, key, value}, -1);
  const auto output =
      std::make_shared<op::Slice>(joined, ints({0}), ints({width}), ints({1}), ints({-1}));
  marks.push_back({joined, output, heads, kv_heads, size, window,
                   node.get_attribute<float>("scale", 0.f)});
  ov::OutputVector given{output->output(0)};
  // Copies: the buffer's own tensors would lose the names that they came in by.
  for (int place : {3, 4})
    given.push_back(std::make_shared<op::Concat>(ov::OutputVector{node.get_input(place)}, 0));
  return given;
}

// Type and rank of each of the paged operator's inputs.
struct PagedInput {
  const char* type;
  int rank;
};
constexpr PagedInput kPagedInputs[] = {
    {"f32", 2}, {"f32", 2},     {"f32", 2},     {"dynamic", 4}, {"dynamic", 4}, {"i32", 1},
    {"i32", 1}, {"i32", 1},     {"i32", 1},     {"f32", 0},     {"i32", 0},     {"f32", 1},
    {"i32", 0}, {"i32", 1},     {"i32", 1},     {"i32", 1},     {"f32", 1},     {"f32", 1},
    {"i32", 0}, {"i32", 0},     {"f32", 4},     {"i32", 0},     {"i32", 1},     {"i32", 1},
    {"i32", 1}, {"i32", 1},     {"u8", 1},      {"i32", 1}};

std::string ports(const std::vector<int>& ranks, std::size_t first) {
  std::string out;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    out += "<port id=\"" + std::to_string(first + i) + "\" precision=\"UNSPECIFIED\">";
    for (int axis = 0; axis < ranks[i]; ++axis) out += "<dim>-1</dim>";
    out += "</port>";
  }
  return out;
}

// The paged operator over inputs of its own, which others are then put in place of: no header has it,
// and a model's text names it. It is the CPU plugin's, which must be loaded.
Node paged_operator() {
  ov::Core& core = openvino_core();
  core.get_versions("CPU");
  std::string layers, edges;
  std::vector<int> ranks;
  const auto end = std::to_string(std::size(kPagedInputs));
  for (const PagedInput& input : kPagedInputs) {
    const std::string id = std::to_string(ranks.size());
    std::string shape;
    for (int axis = 0; axis < input.rank; ++axis) shape += axis ? ",?" : "?";
    layers += "<layer id=\"" + id + "\" name=\"" + id + "\" type=\"Parameter\" version=\"opset1\">" +
              "<data shape=\"" + shape + "\" element_type=\"" + input.type + "\"/><output>" +
              ports({input.rank}, 0) + "</output></layer>";
    edges += "<edge from-layer=\"" + id + "\" from-port=\"0\" to-layer=\"" + end +
             "\" to-port=\"" + id + "\"/>";
    ranks.push_back(input.rank);
  }
  layers += "<layer id=\"" + end + "\" name=\"paged\" type=\"" + kPaged +
            "\" version=\"extension\"><data write_kv_cache=\"true\"/><input>" + ports(ranks, 0) +
            "</input><output>" + ports({2}, ranks.size()) + "</output></layer>";
  const std::string result = std::to_string(ranks.size() + 1);
  layers += "<layer id=\"" + result + "\" name=\"result\" type=\"Result\" version=\"opset1\"><input>" +
            ports({2}, 0) + "</input></layer>";
  edges += "<edge from-layer=\"" + end + "\" from-port=\"" + end + "\" to-layer=\"" + result +
           "\" to-port=\"0\"/>";
  const auto model = core.read_model("<?xml version=\"1.0\"?><net name=\"paged\" version=\"11\"><layers>" +
                                         layers + "</layers><edges>" + edges + "</edges></net>",
                                     ov::Tensor());
  for (const Node& node : model->get_ops())
    if (std::string(node->get_type_name()) == kPaged) return node;
  throw std::runtime_error(std::string("OpenVINO gave no ") + kPaged);
}

// Parameters that the paged model has and the dense one had not, each made when it is first named.
class Added {
 public:
  Port get(const std::string& name, ov::PartialShape shape = {-1},
           ov::element::Type type = ov::element::i32) {
    auto& place = made_[name];
    if (!place) {
      place = std::make_shared<op::Parameter>(type, shape);
      place->set_friendly_name(name);
      place->output(0).set_names({name});
      all_.push_back(place);
    }
    return place->output(0);
  }
  const ov::ParameterVector& all() const { return all_; }

 private:
  std::map<std::string, std::shared_ptr<op::Parameter>> made_;
  ov::ParameterVector all_;
};

Port none(ov::element::Type type, ov::Shape shape = {0}) {
  return std::make_shared<op::Constant>(type, shape)->output(0);
}

template <class T>
Port scalar(T number) {
  return op::Constant::create(ov::element::from<T>(), ov::Shape{}, {number})->output(0);
}

// Puts the paged operator into a mark's place.
void page(const Mark& mark, std::size_t number, const ov::Node& paged_like, Added& added) {
  const Port query = mark.joined->input_value(0), key = mark.joined->input_value(1),
             value = mark.joined->input_value(2);
  const std::int64_t size = mark.size;
  auto flat = [size](const Port& tokens, std::int64_t heads) {
    return std::make_shared<op::Reshape>(tokens, ints({-1, heads * size}), false)->output(0);
  };
  auto cache = [&](const char* of) {
    return added.get(std::string(of) + "_cache." + std::to_string(number), {-1, -1, -1, -1},
                     ov::element::dynamic);
  };
  const Port no_ints = none(ov::element::i32), no_floats = none(ov::element::f32);
  const float scale = mark.scale != 0 ? mark.scale
                                      : static_cast<float>(1 / std::sqrt(static_cast<double>(size)));
  const Node paged = paged_like.clone_with_new_inputs(
      {flat(query, mark.heads), flat(key, mark.kv_heads), flat(value, mark.kv_heads), cache("key"),
       cache("value"), added.get("past_lens"), added.get("subsequence_begins"),
       added.get("block_indices"), added.get("block_indices_begins"), scalar(scale),
       scalar(static_cast<std::int32_t>(std::max<std::int64_t>(mark.window, 0))), no_floats,
       added.get("max_context_len", ov::PartialShape{}),
       // What OpenVINO can do beside that: scores, rotation and eviction of blocks, sinks.
       no_ints, no_ints, no_ints, no_floats, no_floats, scalar(std::int32_t{0}),
       scalar(std::int32_t{0}), none(ov::element::f32, {0, 0, 0, 0}), scalar(std::int32_t{0}),
       no_ints, no_ints, no_ints, no_ints, none(ov::element::u8), no_ints});
  // The plugin takes the sizes from here.
  auto& sizes = paged->get_rt_info();
  sizes["num_k_heads"] = sizes["num_v_heads"] = mark.kv_heads;
  sizes["k_head_size"] = sizes["v_head_size"] = size;
  const auto result = std::make_shared<op::Reshape>(
      paged->output(0), ints({-1, 1, mark.heads * size}), false);
  for (auto taker : mark.output->output(0).get_target_inputs())
    taker.replace_source_output(result->output(0));
}

// Leaves the logits as the only output, of the tokens that `sampled` lists.
void keep_logits(ov::Model& model, const StepNames& names, const Port& sampled) {
  const ov::ResultVector results = model.get_results();
  for (const auto& result : results)
    if (result->input_value(0).get_names().count(names.logits) == 0) model.remove_result(result);
  const Node positions = model.input(names.positions).get_node_shared_ptr();
  ov::Node* node = positions.get();
  while (std::string(node->get_type_name()) != "GatherND") {
    const auto takers = node->output(0).get_target_inputs();
    if (takers.empty()) throw std::runtime_error("its logits are not chosen by position");
    node = takers.begin()->get_node();
  }
  // A row has one token, and logits are wanted of that.
  ov::Node* moved = node->get_input_node_ptr(0);
  const auto chosen = std::make_shared<op::Gather>(moved->input_value(0), sampled,
                                                   op::Constant::create(ov::element::i64, {}, {0}));
  moved->input(0).replace_source_output(chosen->output(0));
  for (auto taker : positions->output(0).get_target_inputs())
    taker.replace_source_output(ints({0}));
}

}  // namespace

std::shared_ptr<ov::Model> read_paged(const std::string& path, bool map_weights,
                                      const StepNames& names,
                                      const std::function<void(const ov::Model&)>& check) {
  const auto frontend = ov::frontend::FrontEndManager().load_by_framework("onnx");
  auto marks = std::make_shared<Marks>();
  auto refused = std::make_shared<std::optional<Unpaged>>();
  frontend->add_extension(std::make_shared<ov::frontend::onnx::ConversionExtension>(
      kAttention, "com.microsoft",
      [marks, refused](const ov::frontend::NodeContext& node) {
        try {
          return marked(node, *marks);
        } catch (const Unpaged& error) {
          refused->emplace(error);
          throw;
        }
      }));
  std::shared_ptr<ov::Model> model;
  try {
    model = frontend->convert(frontend->load(path, map_weights));
  } catch (const std::exception&) {
    if (*refused) throw Unpaged(**refused);
    throw;
  }
  check(*model);
  if (marks->empty()) throw std::runtime_error(std::string("it has no ") + kAttention);
  const Node paged_like = paged_operator();
  Added added;
  for (std::size_t i = 0; i < marks->size(); ++i) page((*marks)[i], i, *paged_like, added);
  keep_logits(*model, names, added.get("sampled", {-1}, ov::element::i64));
  model->add_parameters(added.all());
  const ov::ParameterVector parameters = model->get_parameters();
  for (const auto& one : parameters)
    // The dense buffer, and where in a row logits are wanted.
    if (one->output(0).get_target_inputs().empty()) model->remove_parameter(one);
  model->validate_nodes_and_infer_types();
  return model;
}

}  // namespace ptdeploy::detail
