// The C ABI on top of the C++ API. No exception leaves it.
#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <new>

#include "answer.hpp"
#include "out_of_memory.hpp"
#include "ptdeploy/ptdeploy.h"
#include "ptdeploy/ptdeploy.hpp"
#include "rows.hpp"
#include "task.hpp"

struct ptdeploy_engine {
  ptdeploy::Engine engine;
};

struct ptdeploy_session {
  ptdeploy::Session session;
  size_t room;  // tokens of text that it can hold
  ptdeploy::BundleInfo info;
};

struct ptdeploy_report {
  ptdeploy::ParityReport report;
  // Those of all prompts, printable, with the name of each.
  std::vector<std::pair<std::string, ptdeploy::ParityCase>> cases;
  std::vector<std::string> notes;
};

struct ptdeploy_prompt_list {
  std::vector<ptdeploy::PromptInfo> prompts;
};

namespace {

constexpr std::size_t kBatch = 16;

struct LastError {
  std::string problem, fix;
};
thread_local LastError last_error;

ptdeploy_status failed(ptdeploy_status status, const char* problem, const char* fix) noexcept {
  try {
    // Words for people, and C has nothing else to print them with.
    last_error.problem = ptdeploy::printable(problem);
    last_error.fix = ptdeploy::printable(fix);
  } catch (...) {
    last_error.problem.clear();
    last_error.fix.clear();
  }
  return status;
}

ptdeploy_status failed(ptdeploy_status status, const ptdeploy::Error& error) noexcept {
  return failed(status, error.problem().c_str(), error.fix().c_str());
}

template <class Body>
ptdeploy_status guarded(Body body) noexcept {
  try {
    body();
    return PTDEPLOY_OK;
  } catch (const ptdeploy::BundleError& error) {
    return failed(PTDEPLOY_BUNDLE_ERROR, error);
  } catch (const ptdeploy::OutOfMemory& error) {
    return failed(PTDEPLOY_OUT_OF_MEMORY, error);
  } catch (const ptdeploy::InputError& error) {
    return failed(PTDEPLOY_INPUT_ERROR, error);
  } catch (const ptdeploy::TargetUnavailable& error) {
    return failed(PTDEPLOY_TARGET_UNAVAILABLE, error);
  } catch (const ptdeploy::Error& error) {
    return failed(PTDEPLOY_FAULT, error);
  } catch (const std::bad_alloc&) {
    return failed(PTDEPLOY_OUT_OF_MEMORY, ptdeploy::detail::kNotEnough,
                  ptdeploy::detail::kAskForLess);
  } catch (const std::exception& error) {
    return failed(PTDEPLOY_FAULT, error.what(), "");
  } catch (...) {
    return failed(PTDEPLOY_FAULT, "An exception of an unknown type.", "");
  }
}

// Of any count: products of two of them fit in 64 bits.
constexpr size_t kMost = 2147483647;

template <class T>
T* given(T* pointer, const char* name) {
  if (!pointer) throw ptdeploy::InputError(std::string(name) + " is null.");
  return pointer;
}

void check_count(size_t count, const char* name) {
  if (count > kMost)
    throw ptdeploy::InputError(std::string(name) + " is " + std::to_string(count) +
                               "; it must be at most " + std::to_string(kMost) + ".");
}

ptdeploy::Prompt prompt_of(const char* name) {
  if (!name) return {};
  if (std::strcmp(name, PTDEPLOY_BASE_MODEL) == 0) return ptdeploy::Prompt::base();
  return name;
}

ptdeploy::Prompts prompts_of(const ptdeploy_request& request) {
  if (request.num_prompts == 0) return {};
  if (request.num_prompts > 1 && request.num_prompts != request.rows)
    throw ptdeploy::InputError("prompt names " + std::to_string(request.num_prompts) +
                                   ", but the request has " + std::to_string(request.rows) +
                                   " rows.",
                               "Name one for each row, or one for all.");
  given(request.prompts, "prompts");
  if (request.num_prompts == 1) return prompt_of(request.prompts[0]);
  std::vector<ptdeploy::Prompt> each;
  for (size_t i = 0; i < request.num_prompts; ++i) each.push_back(prompt_of(request.prompts[i]));
  return each;
}

// What a request of rows is in C++.
struct Asked {
  ptdeploy::Prompts prompts;
  std::vector<ptdeploy::Ids> rows, types;  // no types at all where there are no segments
};

// What cannot be one is refused before it is read: a row that is longer than the engine takes or
// empty, and more rows together than it takes at once.
std::vector<ptdeploy::Ids> rows_of(const ptdeploy::Engine& engine, const ptdeploy_request& request,
                                   const int64_t* ids, const ptdeploy::Prompts& prompts) {
  const bool each = prompts.one_each();
  int64_t most = engine.prompt(prompts.prompts()[0]).max_sequence;
  std::vector<ptdeploy::Ids> out;
  for (size_t i = 0; i < request.rows; ids += request.lengths[i++]) {
    if (each) most = engine.prompt(prompts.prompts()[i]).max_sequence;
    const size_t length = given(request.lengths, "lengths")[i];
    if (length > static_cast<size_t>(most))
      throw ptdeploy::InputError("Row " + std::to_string(i) + " has " + std::to_string(length) +
                                     " tokens, but at most " + std::to_string(most) +
                                     " fit beside the virtual tokens.",
                                 "Shorten the text.");
    if (length == 0)
      throw ptdeploy::InputError("Row " + std::to_string(i) +
                                 " is empty: an engine needs at least one token.");
    given(ids, "ids");
    out.emplace_back(ids, ids + length);
  }
  return out;
}

Asked asked_of(const ptdeploy_engine* engine, const ptdeploy_request* request) {
  const ptdeploy::Engine& one = given(engine, "engine")->engine;
  const ptdeploy_request& from = *given(request, "request");
  if (from.size != sizeof from)
    throw ptdeploy::InputError("ptdeploy_request.size is not sizeof(ptdeploy_request).",
                               "Start from ptdeploy_default_request().");
  const ptdeploy::BundleInfo& info = one.info();
  check_count(from.rows, "rows");
  if (ptdeploy::detail::kind_of(info.task).writes)
    ptdeploy::detail::check_row_count(from.rows, info.max_batch);
  Asked out;
  out.prompts = prompts_of(from);
  out.rows = rows_of(one, from, from.ids, out.prompts);
  if (from.token_type_ids) out.types = rows_of(one, from, from.token_type_ids, out.prompts);
  return out;
}

// Rows with the default prompt.
ptdeploy_request request_of(const int64_t* ids, const int64_t* token_type_ids,
                            const size_t* lengths, size_t rows) {
  ptdeploy_request request = ptdeploy_default_request();
  request.ids = ids;
  request.token_type_ids = token_type_ids;
  request.lengths = lengths;
  request.rows = rows;
  return request;
}

void check_room(size_t count, const char* what, size_t capacity,
                const char* fix = "Ask again with as much room.") {
  if (count > capacity)
    throw ptdeploy::InputError("The answer has " + std::to_string(count) + " " + what +
                                   ", but capacity is " + std::to_string(capacity) + ".",
                               fix);
}

// Puts rows of numbers one behind the other, and says how many columns each of the request's has.
template <class Numbers, class Number>
void give_rows(const Numbers& rows, const std::vector<size_t>& widths, Number* out,
               size_t capacity, size_t* columns) {
  size_t total = 0;
  for (const auto& row : rows) total += row.size();
  check_room(total, "numbers", capacity, "Ask ptdeploy_list_prompts for the columns of each prompt.");
  for (const auto& row : rows) out = std::copy(row.begin(), row.end(), out);
  if (columns) std::copy(widths.begin(), widths.end(), columns);
}

// A negative number leaves the model's own; one that is none is refused later, by its name.
template <class Value, class Given>
void set(std::optional<Value>& place, Given given) {
  if (!(given < 0)) place = static_cast<Value>(given);
}

// What a request says of text.
void set_text(ptdeploy::GenerateOptions& out, const ptdeploy_options& options) {
  ptdeploy::detail::check_stop_count(options.num_stop);
  if (options.num_stop > 0) given(options.stop, "stop");
  for (size_t i = 0; i < options.num_stop; ++i)
    out.stop.emplace_back(given(options.stop[i], "stop"));
  if (!options.on_text) return;
  out.on_text = [call = options.on_text, user = options.user](size_t row, const std::string& piece) {
    return call(user, row, piece.c_str(), piece.size()) != 0;
  };
}

ptdeploy::GenerateOptions options_of(const ptdeploy_options* from,
                                     const ptdeploy::BundleInfo& info, size_t capacity,
                                     bool logprobs) {
  check_count(capacity, "capacity");
  ptdeploy::GenerateOptions out;
  out.logprobs = logprobs;
  ptdeploy_options options = ptdeploy_default_options();
  if (from) {
    if (from->size != sizeof options)
      throw ptdeploy::InputError("ptdeploy_options.size is not sizeof(ptdeploy_options).",
                                 "Start from ptdeploy_default_options().");
    options = *from;
  }
  set(out.max_new_tokens, options.max_new_tokens);
  set(out.min_new_tokens, options.min_new_tokens);
  set(out.top_k, options.top_k);
  set(out.do_sample, options.do_sample);
  set(out.temperature, options.temperature);
  set(out.top_p, options.top_p);
  set(out.min_p, options.min_p);
  set(out.repetition_penalty, options.repetition_penalty);
  // More than there are would name one twice.
  if (options.eos_token_ids && options.num_eos_token_ids > static_cast<size_t>(info.vocab_size))
    throw ptdeploy::InputError("num_eos_token_ids is " + std::to_string(options.num_eos_token_ids) +
                               "; there are " + std::to_string(info.vocab_size) + " token ids.");
  if (options.eos_token_ids)
    out.eos_token_ids.emplace(options.eos_token_ids,
                              options.eos_token_ids + options.num_eos_token_ids);
  if (options.has_seed) out.seed = options.seed;
  if (capacity == 0) out.max_new_tokens = 0;
  set_text(out, options);
  if (const volatile int* cancel = options.cancel)
    out.cancelled = [cancel] { return *cancel != 0; };
  return out;
}

// Wraps the caller's callback; ends a row, too, when its array is full.
ptdeploy::OnToken on_token_of(const ptdeploy_options* from, size_t capacity, size_t rows) {
  auto call = from ? from->on_token : nullptr;
  void* user = from ? from->user : nullptr;
  return [=, taken = std::vector<size_t>(rows)](size_t row, int64_t token) mutable {
    const bool on = !call || call(user, row, token) != 0;
    return ++taken[row] < capacity && on;
  };
}

void give(const ptdeploy::Generated& from, size_t capacity, int64_t* tokens, size_t* count,
          ptdeploy_stopped* stopped, double* logprobs) {
  *count = std::min(from.token_ids.size(), capacity);
  std::copy_n(from.token_ids.begin(), *count, tokens);
  if (logprobs) std::copy_n(from.logprobs.begin(), *count, logprobs);
  const bool full = from.stopped == ptdeploy::Stopped::caller && *count == capacity;
  *stopped = full ? PTDEPLOY_LENGTH : static_cast<ptdeploy_stopped>(from.stopped);
}

const char* line_of(const std::vector<std::string>& lines, size_t index) {
  return index < lines.size() ? lines[index].c_str() : nullptr;
}

double or_nan(const std::optional<double>& number) {
  return number.value_or(std::numeric_limits<double>::quiet_NaN());
}

void add_cases(ptdeploy_report& out, const ptdeploy::ParityReport& from) {
  const std::string name = from.prompt.empty() ? PTDEPLOY_BASE_MODEL : from.prompt;
  for (ptdeploy::ParityCase one : from.cases) {
    one.name = ptdeploy::printable(one.name);
    out.cases.emplace_back(name, std::move(one));
  }
  const bool alone = out.report.prompts.empty();
  for (const std::string& note : from.notes)
    out.notes.push_back(ptdeploy::printable(alone ? note : "prompt " + name + ": " + note));
}

}  // namespace

extern "C" {

const char* ptdeploy_version(void) { return ptdeploy::version(); }
const char* ptdeploy_last_error(void) { return last_error.problem.c_str(); }
const char* ptdeploy_last_fix(void) { return last_error.fix.c_str(); }

ptdeploy_status ptdeploy_open(const char* path, const char* device, int threads, int map_weights,
                              ptdeploy_engine** engine) {
  return ptdeploy_open_bounded(path, device, threads, map_weights, 0, engine);
}

ptdeploy_status ptdeploy_open_bounded(const char* path, const char* device, int threads,
                                      int map_weights, size_t max_prompts,
                                      ptdeploy_engine** engine) {
  return guarded([&] {
    *given(engine, "engine") = nullptr;
    given(path, "path");
    ptdeploy::OpenOptions options;
    options.device = device ? device : "";
    options.threads = threads;
    options.map_weights = map_weights != 0;
    options.max_prompts = max_prompts;
    *engine = new ptdeploy_engine{ptdeploy::Engine::open(path, options)};
  });
}

void ptdeploy_close(ptdeploy_engine* engine) { delete engine; }

ptdeploy_task ptdeploy_get_task(const ptdeploy_engine* engine) {
  return engine ? static_cast<ptdeploy_task>(engine->engine.info().task) : PTDEPLOY_SEQ_CLS;
}

ptdeploy_head ptdeploy_get_head(const ptdeploy_engine* engine) {
  return engine ? static_cast<ptdeploy_head>(engine->engine.info().head) : PTDEPLOY_SOFTMAX;
}

int64_t ptdeploy_max_sequence(const ptdeploy_engine* engine) {
  return engine ? engine->engine.info().max_sequence : 0;
}

int64_t ptdeploy_vocab_size(const ptdeploy_engine* engine) {
  return engine ? engine->engine.info().vocab_size : 0;
}

int64_t ptdeploy_type_vocab_size(const ptdeploy_engine* engine) {
  return engine ? engine->engine.info().type_vocab_size : 0;
}

size_t ptdeploy_columns(const ptdeploy_engine* engine) {
  return engine ? engine->engine.info().columns : 0;
}

const char* ptdeploy_label(const ptdeploy_engine* engine, size_t index) {
  if (!engine) return nullptr;
  const auto& labels = engine->engine.info().labels;
  return index < labels.size() ? labels[index].c_str() : nullptr;
}

ptdeploy_status ptdeploy_load_prompt(ptdeploy_engine* engine, const char* path, const char* name) {
  return guarded([&] {
    given(engine, "engine")->engine.load_prompt(given(path, "path"), name ? name : "");
  });
}

ptdeploy_status ptdeploy_unload_prompt(ptdeploy_engine* engine, const char* name) {
  return guarded([&] { given(engine, "engine")->engine.unload_prompt(given(name, "name")); });
}

ptdeploy_status ptdeploy_list_prompts(const ptdeploy_engine* engine, ptdeploy_prompt_list** list) {
  return guarded([&] {
    *given(list, "list") = nullptr;
    *list = new ptdeploy_prompt_list{given(engine, "engine")->engine.prompts()};
  });
}

void ptdeploy_prompt_list_close(ptdeploy_prompt_list* list) { delete list; }

size_t ptdeploy_prompt_list_size(const ptdeploy_prompt_list* list) {
  return list ? list->prompts.size() : 0;
}

ptdeploy_status ptdeploy_prompt_at(const ptdeploy_prompt_list* list, size_t index,
                                   ptdeploy_prompt* prompt) {
  return guarded([&] {
    const auto& prompts = given(list, "list")->prompts;
    given(prompt, "prompt");
    if (index >= prompts.size())
      throw ptdeploy::InputError("The list has " + std::to_string(prompts.size()) +
                                 " prompts; there is none with index " + std::to_string(index) +
                                 ".");
    const ptdeploy::PromptInfo& from = prompts[index];
    *prompt = {from.name.c_str(),
               from.kind.c_str(),
               static_cast<ptdeploy_head>(from.head),
               from.num_virtual_tokens,
               from.max_sequence,
               from.columns};
  });
}

const char* ptdeploy_prompt_label(const ptdeploy_prompt_list* list, size_t index, size_t label) {
  return list && index < list->prompts.size() ? line_of(list->prompts[index].labels, label)
                                              : nullptr;
}

ptdeploy_request ptdeploy_default_request(void) {
  ptdeploy_request request{};
  request.size = sizeof request;
  return request;
}

ptdeploy_status ptdeploy_request_probabilities(const ptdeploy_engine* engine,
                                               const ptdeploy_request* request,
                                               double* probabilities, size_t capacity,
                                               size_t* columns) {
  return guarded([&] {
    const Asked asked = asked_of(engine, request);
    given(probabilities, "probabilities");
    const ptdeploy::Engine& one = engine->engine;
    const auto found = one.probabilities(asked.rows, asked.prompts, kBatch, asked.types);
    const bool each_token = found.size() > asked.rows.size();  // or each row
    std::vector<size_t> widths;
    size_t place = 0;
    for (const ptdeploy::Ids& row : asked.rows) {
      widths.push_back(found[place].size());
      place += each_token ? row.size() : 1;
    }
    give_rows(found, widths, probabilities, capacity, columns);
  });
}

ptdeploy_status ptdeploy_request_logits(const ptdeploy_engine* engine,
                                        const ptdeploy_request* request, float* logits,
                                        size_t capacity, size_t* columns) {
  return guarded([&] {
    const Asked asked = asked_of(engine, request);
    given(logits, "logits");
    std::vector<std::vector<float>> found;
    std::vector<size_t> widths;
    for (ptdeploy::Logits& one : engine->engine.logits(asked.rows, asked.prompts, asked.types)) {
      widths.push_back(one.columns);
      found.push_back(std::move(one.values));
    }
    give_rows(found, widths, logits, capacity, columns);
  });
}

// The default prompt stays, and so does how many columns it has: whoever called knows how many numbers
// come.
ptdeploy_status ptdeploy_probabilities(const ptdeploy_engine* engine, const int64_t* ids,
                                       const int64_t* token_type_ids, const size_t* lengths,
                                       size_t rows, double* probabilities) {
  const ptdeploy_request request = request_of(ids, token_type_ids, lengths, rows);
  return ptdeploy_request_probabilities(engine, &request, probabilities,
                                        std::numeric_limits<size_t>::max(), nullptr);
}

ptdeploy_status ptdeploy_logits(const ptdeploy_engine* engine, const int64_t* ids,
                                const int64_t* token_type_ids, const size_t* lengths, size_t rows,
                                float* logits) {
  const ptdeploy_request request = request_of(ids, token_type_ids, lengths, rows);
  return ptdeploy_request_logits(engine, &request, logits, std::numeric_limits<size_t>::max(),
                                 nullptr);
}

ptdeploy_status ptdeploy_encode(const ptdeploy_engine* engine, const char* text, size_t bytes,
                                int64_t* ids, size_t capacity, size_t* count) {
  return guarded([&] {
    const ptdeploy::Engine& one = given(engine, "engine")->engine;
    check_count(bytes, "bytes");
    if (bytes > 0) given(text, "text");
    if (capacity > 0) given(ids, "ids");
    given(count, "count");
    const ptdeploy::Ids found = one.encode(bytes > 0 ? std::string(text, bytes) : "");
    *count = found.size();
    check_room(found.size(), "token ids", capacity);
    std::copy(found.begin(), found.end(), ids);
  });
}

ptdeploy_status ptdeploy_decode(const ptdeploy_engine* engine, const int64_t* ids, size_t count,
                                char* text, size_t capacity, size_t* bytes) {
  return guarded([&] {
    const ptdeploy::Engine& one = given(engine, "engine")->engine;
    check_count(count, "count");
    if (count > 0) given(ids, "ids");
    if (capacity > 0) given(text, "text");
    given(bytes, "bytes");
    const std::string found = one.decode(ptdeploy::Ids(ids, ids + count));
    *bytes = found.size();
    check_room(found.size() + 1, "bytes", capacity);
    std::copy_n(found.c_str(), found.size() + 1, text);
  });
}

ptdeploy_options ptdeploy_default_options(void) {
  ptdeploy_options options{};
  options.size = sizeof options;
  options.max_new_tokens = options.min_new_tokens = options.top_k = -1;
  options.do_sample = -1;
  options.temperature = options.top_p = options.min_p = options.repetition_penalty = -1;
  return options;
}

ptdeploy_status ptdeploy_request_generate(const ptdeploy_engine* engine,
                                          const ptdeploy_request* request,
                                          const ptdeploy_options* options, size_t capacity,
                                          int64_t* tokens, size_t* counts,
                                          ptdeploy_stopped* stopped, double* logprobs) {
  return guarded([&] {
    const Asked asked = asked_of(engine, request);
    if (!asked.types.empty())
      throw ptdeploy::InputError("A request to generate has no token_type_ids.", "Leave them null.");
    if (capacity > 0) given(tokens, "tokens");
    given(counts, "counts");
    given(stopped, "stopped");
    const size_t rows = asked.rows.size();
    const auto results = engine->engine.generate(asked.rows, asked.prompts,
                                                 options_of(options, engine->engine.info(),
                                                            capacity, logprobs != nullptr),
                                                 on_token_of(options, capacity, rows));
    for (size_t i = 0; i < rows; ++i)
      give(results[i], capacity, tokens + i * capacity, counts + i, stopped + i,
           logprobs ? logprobs + i * capacity : nullptr);
  });
}

ptdeploy_status ptdeploy_generate(const ptdeploy_engine* engine, const int64_t* ids,
                                  const size_t* lengths, size_t rows,
                                  const ptdeploy_options* options, size_t capacity, int64_t* tokens,
                                  size_t* counts, ptdeploy_stopped* stopped, double* logprobs) {
  const ptdeploy_request request = request_of(ids, nullptr, lengths, rows);
  return ptdeploy_request_generate(engine, &request, options, capacity, tokens, counts, stopped,
                                   logprobs);
}

ptdeploy_status ptdeploy_session_open(const ptdeploy_engine* engine, size_t max_tokens,
                                      ptdeploy_session** session) {
  return ptdeploy_session_open_with(engine, nullptr, max_tokens, session);
}

ptdeploy_status ptdeploy_session_open_with(const ptdeploy_engine* engine, const char* prompt,
                                           size_t max_tokens, ptdeploy_session** session) {
  return guarded([&] {
    *given(session, "session") = nullptr;
    const ptdeploy::Engine& one = given(engine, "engine")->engine;
    ptdeploy::Session opened = one.session(prompt_of(prompt), max_tokens);
    const size_t room = opened.max_tokens();
    *session = new ptdeploy_session{std::move(opened), room, one.info()};
  });
}

void ptdeploy_session_close(ptdeploy_session* session) { delete session; }

ptdeploy_status ptdeploy_session_append(ptdeploy_session* session, const int64_t* ids,
                                        size_t count) {
  return guarded([&] {
    auto& one = given(session, "session")->session;
    const size_t held = one.token_ids().size();
    if (count > session->room - held)
      throw ptdeploy::InputError(std::to_string(count) + " more tokens do not fit: the session has " +
                                     std::to_string(held) + " of " + std::to_string(session->room) +
                                     ".",
                                 "Roll it back, or open one with a larger max_tokens.");
    if (count > 0) given(ids, "ids");
    one.append(ptdeploy::Ids(ids, ids + count));
  });
}

ptdeploy_status ptdeploy_session_generate(ptdeploy_session* session,
                                          const ptdeploy_options* options, size_t capacity,
                                          int64_t* tokens, size_t* count, ptdeploy_stopped* stopped,
                                          double* logprobs) {
  return guarded([&] {
    given(session, "session");
    if (capacity > 0) given(tokens, "tokens");
    given(count, "count");
    given(stopped, "stopped");
    give(session->session.generate(options_of(options, session->info, capacity, logprobs != nullptr),
                                   on_token_of(options, capacity, 1)),
         capacity, tokens, count, stopped, logprobs);
  });
}

ptdeploy_status ptdeploy_session_rollback(ptdeploy_session* session, size_t tokens) {
  return guarded([&] { given(session, "session")->session.rollback(tokens); });
}

ptdeploy_status ptdeploy_session_fork(const ptdeploy_session* session, ptdeploy_session** fork) {
  return guarded([&] {
    *given(fork, "fork") = nullptr;
    given(session, "session");
    *fork = new ptdeploy_session{session->session.fork(), session->room, session->info};
  });
}

size_t ptdeploy_session_length(const ptdeploy_session* session) {
  return session ? session->session.token_ids().size() : 0;
}

ptdeploy_status ptdeploy_verify(const ptdeploy_engine* engine, ptdeploy_report** report) {
  return guarded([&] {
    *given(report, "report") = nullptr;
    auto made = std::make_unique<ptdeploy_report>();
    made->report = given(engine, "engine")->engine.verify();
    for (std::string& line : made->report.failures) line = ptdeploy::printable(line);
    add_cases(*made, made->report);
    for (const ptdeploy::ParityReport& other : made->report.prompts) add_cases(*made, other);
    *report = made.release();
  });
}

void ptdeploy_report_close(ptdeploy_report* report) { delete report; }

int ptdeploy_report_passed(const ptdeploy_report* report) { return report && report->report.passed; }

const char* ptdeploy_report_failure(const ptdeploy_report* report, size_t index) {
  return report ? line_of(report->report.failures, index) : nullptr;
}

const char* ptdeploy_report_note(const ptdeploy_report* report, size_t index) {
  return report ? line_of(report->notes, index) : nullptr;
}

size_t ptdeploy_report_cases(const ptdeploy_report* report) {
  return report ? report->cases.size() : 0;
}

ptdeploy_status ptdeploy_report_case(const ptdeploy_report* report, size_t index,
                                     ptdeploy_parity_case* one) {
  return guarded([&] {
    const auto& cases = given(report, "report")->cases;
    given(one, "one");
    if (index >= cases.size())
      throw ptdeploy::InputError("The report has " + std::to_string(cases.size()) +
                                 " cases; there is none with index " + std::to_string(index) + ".");
    const ptdeploy::ParityCase& from = cases[index].second;
    *one = {from.name.c_str(),   or_nan(from.max_abs), or_nan(from.mean_abs),
            or_nan(from.cosine), or_nan(from.kl),      from.top1_agreement,
            from.passed};
  });
}

const char* ptdeploy_report_case_prompt(const ptdeploy_report* report, size_t index) {
  return report && index < report->cases.size() ? report->cases[index].first.c_str() : nullptr;
}

}  // extern "C"
