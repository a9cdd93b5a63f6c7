// ptdeploy in C++17: open a bundle and run it. docs/cpp.md explains; ptdeploy.h is the C ABI.
//
//   auto engine = ptdeploy::Engine::open("model.ort.bundle");
//   for (auto& one : engine.classify({{101, 7592, 102}})) std::cout << one.label << "\n";
//   engine.classify(rows, "reviews");                            // another prompt than the default
//   engine.generate(rows, {"legal", Prompt::base(), Prompt()});  // one for each row
//
// Rows are token ids; Engine::encode makes them of text. An Engine may be used by any number of threads at once; a Session
// by one at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "ptdeploy/export.h"

namespace ptdeploy {

namespace detail {
struct EngineState;
struct SessionState;
}  // namespace detail

// Text on one line, whose characters that would act on a terminal or forge a line are written as
// escapes (\x1b); with `lines`, line ends and tabs stay. Names, labels, reasons and decoded text come
// from files and models, so print them through this.
PTDEPLOY_API std::string printable(const std::string& text, bool lines = false);

// What is wrong and where in `problem`, how to mend it in `fix` (may be empty). They hold words of
// files as they are; what() is both, a line each, and printable.
class PTDEPLOY_API Error : public std::runtime_error {
 public:
  explicit Error(std::string problem, std::string fix = "");
  ~Error() override;
  const std::string& problem() const noexcept { return problem_; }
  const std::string& fix() const noexcept { return fix_; }

 private:
  std::string problem_, fix_;
};

// The bundle is missing, damaged, or of another version.
class PTDEPLOY_API BundleError : public Error {
 public:
  using Error::Error;
  ~BundleError() override;
};

// The request does not fit: too long, empty, an option out of its range.
class PTDEPLOY_API InputError : public Error {
 public:
  using Error::Error;
  ~InputError() override;
};

// What was asked for does not fit into the memory of this machine or its device.
class PTDEPLOY_API OutOfMemory : public InputError {
 public:
  using InputError::InputError;
  ~OutOfMemory() override;
};

// This library or this machine cannot run the bundle's target or device.
class PTDEPLOY_API TargetUnavailable : public Error {
 public:
  using Error::Error;
  ~TargetUnavailable() override;
};

// The engine failed while it ran.
class PTDEPLOY_API EngineFault : public Error {
 public:
  using Error::Error;
  ~EngineFault() override;
};

enum class Task { seq_cls, token_cls, causal_lm };

// What a classifier's logits are: scores of classes of which one is true, scores of classes each
// true or not, or numbers that are the answer.
enum class Head { softmax, sigmoid, regression };

// One row of token ids.
using Ids = std::vector<std::int64_t>;

// Scores before softmax, in row order.
struct Logits {
  std::size_t rows = 0, columns = 0;
  std::vector<float> values;
  const float* row(std::size_t i) const { return values.data() + i * columns; }
};

// The prompt of a row: the one of a name, the base model without a prompt, or the default one of the
// bundle (the base model where it has none). They are three things, and no string or pointer stands
// for another than its name.
class PTDEPLOY_API Prompt {
 public:
  Prompt() = default;        // the default one
  Prompt(std::string name);  // NOLINT: a name may stand for the prompt, as all below
  Prompt(const char* name);  // NOLINT
  Prompt(std::nullptr_t) = delete;
  static Prompt base();  // the base model alone; a head belongs to a prompt, so for causal_lm

  bool is_default() const noexcept { return kind_ == Kind::preset; }
  bool is_base() const noexcept { return kind_ == Kind::base; }
  const std::string& name() const noexcept { return name_; }  // empty where it has none

 private:
  enum class Kind { preset, base, named };
  Kind kind_ = Kind::preset;
  std::string name_;
};

// The prompts of a request's rows: one for all of them, or one for each, in braces or a vector.
class PTDEPLOY_API Prompts {
 public:
  Prompts() = default;                             // the default one, for all
  Prompts(Prompt one);                             // NOLINT
  Prompts(std::string name);                       // NOLINT
  Prompts(const char* name);                       // NOLINT
  Prompts(std::initializer_list<Prompt> each);     // NOLINT
  Prompts(std::vector<Prompt> each);               // NOLINT
  Prompts(const std::vector<std::string>& names);  // NOLINT

  bool one_each() const noexcept { return one_each_; }
  const std::vector<Prompt>& prompts() const noexcept { return prompts_; }

 private:
  bool one_each_ = false;
  std::vector<Prompt> prompts_ = {Prompt()};
};

struct OpenOptions {
  std::string device;        // empty: the one the bundle was compiled for
  int threads = 0;           // 0: the engine's own default
  bool map_weights = false;  // leave the weights in their file: opens faster, runs slower
  // How many prompts stay in memory beside those that requests are using: of more, the least
  // recently used is read again from its file when it is asked for. 0: all of them.
  std::size_t max_prompts = 0;
};

// What a bundle is, from its manifest. What belongs to a prompt is the default prompt's.
struct BundleInfo {
  Task task{};
  Head head{};
  std::string target, device, precision, route;
  std::string prompt;               // its name; empty where the base model is alone
  std::vector<std::string> labels;  // empty for causal_lm
  std::int64_t num_virtual_tokens = 0;
  bool prefix_kv = false;         // whether the prompt is frozen as keys and values
  std::int64_t max_sequence = 0;  // most tokens of text in a row, generated ones included
  std::int64_t max_context = 0;   // the same with the virtual tokens
  std::int64_t vocab_size = 0;    // ids are 0 to vocab_size - 1
  // Segments (token_type_ids) are 0 to type_vocab_size - 1; 0 for a model without.
  std::int64_t type_vocab_size = 0;
  std::size_t columns = 0;        // of logits: classes, or the vocabulary
  std::optional<std::int64_t> max_batch;
};

// What a prompt is.
struct PromptInfo {
  std::string name;  // empty: the base model alone
  std::string kind;
  Head head{};
  std::vector<std::string> labels;  // empty for causal_lm
  std::int64_t num_virtual_tokens = 0;
  bool prefix_kv = false;         // whether it is frozen as keys and values
  std::int64_t max_sequence = 0;  // most tokens of text in a row beside it
  std::size_t columns = 0;        // of logits: classes, or the vocabulary
};

// The likeliest class. Where the head is a sigmoid each probability stands by itself, and all classes
// of at least 0.5 are true.
struct Classification {
  std::string label;
  std::size_t index = 0;
  double probability = 0;
  std::vector<double> probabilities;  // in the order of its prompt's labels
};

struct TokenLabel {
  std::int64_t token_id = 0;
  std::string label;
  std::size_t index = 0;
  double probability = 0;
  std::vector<double> probabilities;
};

// What is not given is the model's own default. Giving temperature, top_k, top_p or min_p asks for
// sampling; temperature 0 takes the likeliest token.
struct GenerateOptions {
  std::optional<std::int64_t> max_new_tokens, min_new_tokens;
  std::optional<bool> do_sample;
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<std::int64_t> top_k;
  std::optional<std::vector<std::int64_t>> eos_token_ids;  // an empty vector: never stop at one
  std::optional<std::uint64_t> seed;                       // row i is sampled with seed + i
  bool logprobs = false;
  // A row ends where one of these stands in its text: its text ends before it; its tokens stay in
  // `token_ids`.
  // At most 64, of up to 1024 characters. Special tokens are found by their names, as in "</s>".
  std::vector<std::string> stop;
  bool text = false;  // give the text too; `stop` and `on_text` ask for it as well
  // Called with each piece of a row's text as soon as no later token can change it; all of them are its
  // `text`. False ends that row.
  std::function<bool(std::size_t row, const std::string& piece)> on_text;
  // Asked before each step, from the thread that generates; true ends all rows.
  std::function<bool()> cancelled;
};

enum class Stopped { length, eos, cancelled, caller, stop };

struct Generated {
  Ids token_ids;  // without the EOS token
  // If asked for: what the new tokens add to the text of the row's own, blanks included, so that the
  // text before and this one are the text of all; special tokens have none.
  std::string text;
  Stopped stopped = Stopped::length;
  std::vector<double> logprobs;  // one for each token id if asked for
};

// One output of a head that chooses no one class, and by how much it is off at most.
struct ParityOutput {
  std::size_t output = 0;
  std::optional<double> max_abs;
  double allowed = 0;
};

// One batch of rows, held against the reference at every position; a measure is empty where a
// number was not finite.
struct ParityCase {
  std::string name;
  std::vector<std::size_t> lengths;  // of its rows, in tokens
  std::optional<double> max_abs, mean_abs, cosine, kl;
  double top1_agreement = 0;
  bool passed = false;
  std::string stopped;  // why the engine failed, where it did: then there are no numbers
  // Whether the batch had rows of other prompts too: `lengths` and numbers are of the report's own.
  bool mixed = false;
  // Whether its rows ran as the base model alone, of a bundle that has a prompt.
  bool without_prompt = false;
  // Of quantized weights and of rows that ran beside others: the largest difference of a logit from
  // the same engine's own row alone.
  std::optional<double> own_max_abs;
  // Of a head that chooses no one class: the output that is furthest over what it, by the size of
  // its own values, may be off by; empty where none is. `own_output` is the same of the engine's
  // own rows alone.
  std::optional<ParityOutput> output, own_output;
};

// One row's greedy tokens: how many agree before one does not.
struct ParityGreedy {
  std::size_t length = 0, agreed = 0, total = 0;
  bool passed = false;
  std::string stopped;  // why the engine failed, where it did
  bool mixed = false;   // whether the batch had rows of other prompts too
  bool without_prompt = false;  // whether the base model alone continued it
  // Given the text and its tokens alone and at once, the same engine finds a token's log probability
  // to be off by `steps_apart` at most and, in a row with a mismatch, a token to lie below the
  // likeliest one by `behind`; nothing where that is not finite.
  std::optional<double> behind, steps_apart;
};

// What int8 and int4 are evaluated by instead of the cases' numbers: agreement on text.
struct ParityQuality {
  std::string evaluated_on;
  std::size_t texts = 0, positions = 0;
  double top1_agreement = 0;
  std::optional<double> perplexity_ratio;  // to the reference's; for causal_lm
  // What top1_agreement is a share of: a head that chooses no one class has other words.
  std::string measured = "top-1 agreement";
  // Of classifiers that choose a class: the logits' distance from the reference's, and how much of
  // the text the reference finds its commonest class in. docs/parity.md has both.
  std::optional<double> logits_error, largest_share;
  // The smallest share of changed answers that agreement would notice; empty if none.
  std::optional<double> detectable;
  // Of a classifier that has logits to compare: the positions whose likeliest class leads clearly,
  // which alone top1_agreement and detectable are of, and how many others' answers changed.
  std::optional<std::size_t> clear, near_ties;
  // The root mean square difference from the reference: of a classifier's logits, or for causal_lm of
  // how surprising the text's next tokens are, in nats.
  std::optional<double> rms_error;
  // Of each output, where a head that chooses no one class has several.
  std::vector<std::optional<double>> rms_outputs;
  std::string asked_for;  // what the bundle's maker holds it to, in words
  std::string stopped;    // why the engine gave no numbers of a text; empty if it gave all
};

// Of int8, int4 and fp8: how much of what sets a prompt apart from the base model alone (`other` is
// empty) or from another prompt is missing in the engine. About 0 where it has the prompt, 1 where
// it has the other in its place; `error` is the standard error. docs/parity.md has both.
struct ParityEffect {
  std::string other;
  bool without_prompt = false;  // of rows of the base model alone, which may have `other`
  std::optional<double> missing, error;
  std::size_t positions = 0;
  bool told = false;  // whether the two can be told apart; if not, it passes
  bool passed = true;
};

// The outcome of Engine::verify(): of one prompt, and in `prompts` of the bundle's others. `passed` and
// `failures` are of all of them.
struct ParityReport {
  bool passed = false;
  std::string prompt;                     // its name; empty: the base model alone
  std::vector<ParityReport> prompts;
  std::string reference;                  // what made it
  std::optional<double> largest_allowed;  // of max_abs; empty for int8 and int4
  // Of own_max_abs; empty where no weights are quantized.
  std::optional<double> own_allowed;
  std::optional<double> decode_allowed;  // of `steps_apart` and `behind`; for causal_lm
  std::vector<ParityCase> cases;
  std::vector<ParityGreedy> greedy;
  std::optional<ParityQuality> quality;
  std::vector<ParityEffect> effects;
  std::size_t texts_not_compared = 0;  // for the tokenizer; Python's `ptdeploy verify` compares them
  std::vector<std::string> failures, notes;
  // How many of `failures` are the prompt's own, which come first; the first of those, so many, say why
  // the engine failed.
  std::size_t own_failures = 0, engine_faults = 0;
};

// Called with each new token of a row as soon as it is chosen; false ends that row after it.
using OnToken = std::function<bool(std::size_t row, std::int64_t token)>;

// One sequence that keeps its keys and values between turns.
class PTDEPLOY_API Session {
 public:
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  void append(const Ids& ids);
  Generated generate(const GenerateOptions& options = {}, const OnToken& on_token = {});
  void rollback(std::size_t tokens);  // forgets the last ones
  Session fork() const;               // goes on from here; nothing is run again
  const Ids& token_ids() const;       // the text so far
  std::size_t max_tokens() const;     // of text, that it has room for

 private:
  friend class Engine;
  explicit Session(std::unique_ptr<detail::SessionState> state);
  std::unique_ptr<detail::SessionState> state_;
};

// An open bundle. Copies share it, and sessions keep it alive.
class PTDEPLOY_API Engine {
 public:
  // Checks the manifest, every path, size and SHA-256, and opens the engine.
  // Throws BundleError, InputError (an unknown target), TargetUnavailable or OutOfMemory.
  static Engine open(const std::string& path, const OpenOptions& options = {});

  const BundleInfo& info() const;
  // The bytes of the file with this role ("tokenizer", "chat_template", ...), of a prompt's files the
  // default one's, or nothing where the bundle has none. It is the file that was there when the
  // bundle was opened, whatever has taken its place, and it is hashed again: throws BundleError if it
  // was changed where it lies.
  std::optional<std::string> read(const std::string& role) const;

  // A text's token ids, with the special tokens that belong around it, by the program that `ptdeploy
  // compile --cpp-tokenizer` wrote. Throws InputError if the bundle has none or the text is no UTF-8,
  // TargetUnavailable if OpenVINO's tokenizers are not here.
  Ids encode(const std::string& text) const;
  // The text of token ids without special tokens, by the bundle's tokenizer.json. What names no token
  // has no text. Throws InputError if the bundle has no tokenizer.
  std::string decode(const Ids& ids) const;

  // The prompts that can be asked for just now: the bundle's, then those loaded since.
  std::vector<PromptInfo> prompts() const;
  // What one of them is, or the base model. Throws InputError, listing those there are, if there is
  // none of that name.
  PromptInfo prompt(const Prompt& prompt = {}) const;
  // Takes in a prompt, to be asked for by `name`; empty: the name that it has there. `path` is a pack,
  // or a bundle of which it is the prompt of that name; empty: the only one, or else the default one.
  // Both must have been proven over this very engine. Requests go on meanwhile. Throws InputError if the
  // name is taken or is none, BundleError if the file is damaged, the engine is another one, or the
  // prompt does not fit this one's limits.
  void load_prompt(const std::string& path, const std::string& name = "");
  // Takes a prompt out: from now on nobody can ask for it. Waits until the requests that use it are
  // over; a session keeps its own and goes on. Throws InputError if there is no such prompt, or it is
  // the default one.
  void unload_prompt(const std::string& name);

  // Each row is answered as if it were alone, with its own prompt, whatever the others have. All
  // throw InputError if there is no such prompt, or a row does not fit beside its own.

  // For seq_cls, but for a regression, whose values are its logits: one result for each row. Rows run
  // in batches of `batch_size`. `token_type_ids` has the segment of each token, as a tokenizer gives
  // them for a pair of texts; empty: all 0.
  std::vector<Classification> classify(const std::vector<Ids>& rows, const Prompts& prompts = {},
                                       std::size_t batch_size = 16,
                                       const std::vector<Ids>& token_type_ids = {}) const;
  // For token_cls: one label for each token of each row.
  std::vector<std::vector<TokenLabel>> tag(const std::vector<Ids>& rows,
                                           const Prompts& prompts = {}, std::size_t batch_size = 16,
                                           const std::vector<Ids>& token_type_ids = {}) const;
  // What both of them say in numbers alone: the probability of each class for each row or, for
  // token_cls, for each token of the first row, then of the second.
  std::vector<std::vector<double>> probabilities(const std::vector<Ids>& rows,
                                                 const Prompts& prompts = {},
                                                 std::size_t batch_size = 16,
                                                 const std::vector<Ids>& token_type_ids = {}) const;
  // Any task: (1, classes), (tokens, classes) or (tokens, vocabulary) for each row; the classes are
  // those of its own prompt.
  std::vector<Logits> logits(const std::vector<Ids>& rows, const Prompts& prompts = {},
                             const std::vector<Ids>& token_type_ids = {}) const;

  // For causal_lm: continues all rows together. Text and stop strings need the bundle's tokenizer.json
  // and nothing else: throws InputError if it has none.
  std::vector<Generated> generate(const std::vector<Ids>& rows, const Prompts& prompts = {},
                                  const GenerateOptions& options = {},
                                  const OnToken& on_token = {}) const;
  // For causal_lm: a sequence of at most `max_tokens` tokens of text; 0: as many as fit.
  Session session(const Prompt& prompt = {}, std::size_t max_tokens = 0) const;

  // Runs the inputs stored in the bundle, of each of its prompts and of batches that mix them, and
  // holds the answers against those stored beside them, as `ptdeploy verify BUNDLE` does. Prompts
  // that were loaded since are not compared. A mismatch is no error: ask the report. Throws
  // InputError if the bundle holds none, BundleError if what it holds is damaged.
  ParityReport verify() const;

 private:
  explicit Engine(std::shared_ptr<const detail::EngineState> state);
  std::shared_ptr<const detail::EngineState> state_;
};

PTDEPLOY_API const char* version() noexcept;

}  // namespace ptdeploy
