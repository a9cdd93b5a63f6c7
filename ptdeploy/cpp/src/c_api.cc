// The C ABI on top of the C++ API. No exception leaves it.
#include <algorithm>
#include <exception>
#include <limits>
#include <new>

#include "ptdeploy/ptdeploy.h"
#include "ptdeploy/ptdeploy.hpp"

struct ptdeploy_engine {
  ptdeploy::Engine engine;
};

struct ptdeploy_session {
  ptdeploy::Session session;
};

struct ptdeploy_report {
  ptdeploy::ParityReport report;
};

namespace {

constexpr std::size_t kBatch = 16;

struct LastError {
  std::string problem, fix;
};
thread_local LastError last_error;

ptdeploy_status failed(ptdeploy_status status, const char* problem, const char* fix) noexcept {
  try {
    last_error.problem = problem;
    last_error.fix = fix;
  } catch (...) {
    last_error.problem.clear();
    last_error.fix.clear();
  }
  return status;
}

template <class Body>
ptdeploy_status guarded(Body body) noexcept {
  try {
    body();
    return PTDEPLOY_OK;
  } catch (const ptdeploy::BundleError& error) {
    return failed(PTDEPLOY_BUNDLE_ERROR, error.problem().c_str(), error.fix().c_str());
  } catch (const ptdeploy::InputError& error) {
    return failed(PTDEPLOY_INPUT_ERROR, error.problem().c_str(), error.fix().c_str());
  } catch (const ptdeploy::TargetUnavailable& error) {
    return failed(PTDEPLOY_TARGET_UNAVAILABLE, error.problem().c_str(), error.fix().c_str());
  } catch (const std::bad_alloc&) {
    return failed(PTDEPLOY_FAULT, "Out of memory.", "");
  } catch (const std::exception& error) {
    return failed(PTDEPLOY_FAULT, error.what(), "");
  } catch (...) {
    return failed(PTDEPLOY_FAULT, "An exception of an unknown type.", "");
  }
}

// No rows at all where there are no ids.
std::vector<ptdeploy::Ids> rows_of(const int64_t* ids, const size_t* lengths, size_t rows) {
  std::vector<ptdeploy::Ids> out;
  if (!ids) return out;
  for (size_t i = 0; i < rows; ids += lengths[i++]) out.emplace_back(ids, ids + lengths[i]);
  return out;
}

template <class Value, class Given>
void set(std::optional<Value>& place, Given given) {
  if (given >= 0) place = static_cast<Value>(given);
}

ptdeploy::GenerateOptions options_of(const ptdeploy_options* given, size_t capacity,
                                     bool logprobs) {
  ptdeploy::GenerateOptions out;
  out.logprobs = logprobs;
  ptdeploy_options options = ptdeploy_default_options();
  if (given) {
    if (given->size != sizeof options)
      throw ptdeploy::InputError("ptdeploy_options.size is not sizeof(ptdeploy_options).",
                                 "Start from ptdeploy_default_options().");
    options = *given;
  }
  set(out.max_new_tokens, options.max_new_tokens);
  set(out.min_new_tokens, options.min_new_tokens);
  set(out.top_k, options.top_k);
  set(out.do_sample, options.do_sample);
  set(out.temperature, options.temperature);
  set(out.top_p, options.top_p);
  set(out.min_p, options.min_p);
  set(out.repetition_penalty, options.repetition_penalty);
  if (options.eos_token_ids)
    out.eos_token_ids.emplace(options.eos_token_ids,
                              options.eos_token_ids + options.num_eos_token_ids);
  if (options.has_seed) out.seed = options.seed;
  if (capacity == 0) out.max_new_tokens = 0;
  if (const volatile int* cancel = options.cancel)
    out.cancelled = [cancel] { return *cancel != 0; };
  return out;
}

// Wraps the caller's callback; ends a row, too, when its array is full.
ptdeploy::OnToken on_token_of(const ptdeploy_options* given, size_t capacity, size_t rows) {
  auto call = given ? given->on_token : nullptr;
  void* user = given ? given->user : nullptr;
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

}  // namespace

extern "C" {

const char* ptdeploy_version(void) { return ptdeploy::version(); }
const char* ptdeploy_last_error(void) { return last_error.problem.c_str(); }
const char* ptdeploy_last_fix(void) { return last_error.fix.c_str(); }

ptdeploy_status ptdeploy_open(const char* path, const char* device, int threads, int map_weights,
                              ptdeploy_engine** engine) {
  return guarded([&] {
    *engine = nullptr;
    ptdeploy::OpenOptions options;
    options.device = device ? device : "";
    options.threads = threads;
    options.map_weights = map_weights != 0;
    *engine = new ptdeploy_engine{ptdeploy::Engine::open(path, options)};
  });
}

void ptdeploy_close(ptdeploy_engine* engine) { delete engine; }

ptdeploy_task ptdeploy_get_task(const ptdeploy_engine* engine) {
  return static_cast<ptdeploy_task>(engine->engine.info().task);
}

ptdeploy_head ptdeploy_get_head(const ptdeploy_engine* engine) {
  return static_cast<ptdeploy_head>(engine->engine.info().head);
}

int64_t ptdeploy_max_sequence(const ptdeploy_engine* engine) {
  return engine->engine.info().max_sequence;
}

int64_t ptdeploy_vocab_size(const ptdeploy_engine* engine) {
  return engine->engine.info().vocab_size;
}

int64_t ptdeploy_type_vocab_size(const ptdeploy_engine* engine) {
  return engine->engine.info().type_vocab_size;
}

size_t ptdeploy_columns(const ptdeploy_engine* engine) { return engine->engine.info().columns; }

const char* ptdeploy_label(const ptdeploy_engine* engine, size_t index) {
  const auto& labels = engine->engine.info().labels;
  return index < labels.size() ? labels[index].c_str() : nullptr;
}

ptdeploy_status ptdeploy_probabilities(const ptdeploy_engine* engine, const int64_t* ids,
                                       const int64_t* token_type_ids, const size_t* lengths,
                                       size_t rows, double* probabilities) {
  return guarded([&] {
    const auto given = rows_of(ids, lengths, rows);
    const auto types = rows_of(token_type_ids, lengths, rows);
    auto take = [&](const std::vector<double>& one) {
      probabilities = std::copy(one.begin(), one.end(), probabilities);
    };
    if (engine->engine.info().task == ptdeploy::Task::token_cls) {
      for (const auto& row : engine->engine.tag(given, kBatch, types))
        for (const auto& token : row) take(token.probabilities);
    } else {
      for (const auto& row : engine->engine.classify(given, kBatch, types)) take(row.probabilities);
    }
  });
}

ptdeploy_status ptdeploy_logits(const ptdeploy_engine* engine, const int64_t* ids,
                                const int64_t* token_type_ids, const size_t* lengths, size_t rows,
                                float* logits) {
  return guarded([&] {
    for (const auto& one : engine->engine.logits(rows_of(ids, lengths, rows),
                                                 rows_of(token_type_ids, lengths, rows)))
      logits = std::copy(one.values.begin(), one.values.end(), logits);
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

ptdeploy_status ptdeploy_generate(const ptdeploy_engine* engine, const int64_t* ids,
                                  const size_t* lengths, size_t rows,
                                  const ptdeploy_options* options, size_t capacity, int64_t* tokens,
                                  size_t* counts, ptdeploy_stopped* stopped, double* logprobs) {
  return guarded([&] {
    const auto results = engine->engine.generate(rows_of(ids, lengths, rows),
                                                 options_of(options, capacity, logprobs != nullptr),
                                                 on_token_of(options, capacity, rows));
    for (size_t i = 0; i < rows; ++i)
      give(results[i], capacity, tokens + i * capacity, counts + i, stopped + i,
           logprobs ? logprobs + i * capacity : nullptr);
  });
}

ptdeploy_status ptdeploy_session_open(const ptdeploy_engine* engine, size_t max_tokens,
                                      ptdeploy_session** session) {
  return guarded([&] {
    *session = nullptr;
    *session = new ptdeploy_session{engine->engine.session(max_tokens)};
  });
}

void ptdeploy_session_close(ptdeploy_session* session) { delete session; }

ptdeploy_status ptdeploy_session_append(ptdeploy_session* session, const int64_t* ids,
                                        size_t count) {
  return guarded([&] { session->session.append(ptdeploy::Ids(ids, ids + count)); });
}

ptdeploy_status ptdeploy_session_generate(ptdeploy_session* session,
                                          const ptdeploy_options* options, size_t capacity,
                                          int64_t* tokens, size_t* count, ptdeploy_stopped* stopped,
                                          double* logprobs) {
  return guarded([&] {
    give(session->session.generate(options_of(options, capacity, logprobs != nullptr),
                                   on_token_of(options, capacity, 1)),
         capacity, tokens, count, stopped, logprobs);
  });
}

ptdeploy_status ptdeploy_session_rollback(ptdeploy_session* session, size_t tokens) {
  return guarded([&] { session->session.rollback(tokens); });
}

ptdeploy_status ptdeploy_session_fork(const ptdeploy_session* session, ptdeploy_session** fork) {
  return guarded([&] {
    *fork = nullptr;
    *fork = new ptdeploy_session{session->session.fork()};
  });
}

size_t ptdeploy_session_length(const ptdeploy_session* session) {
  return session->session.token_ids().size();
}

ptdeploy_status ptdeploy_verify(const ptdeploy_engine* engine, ptdeploy_report** report) {
  return guarded([&] {
    *report = nullptr;
    *report = new ptdeploy_report{engine->engine.verify()};
  });
}

void ptdeploy_report_close(ptdeploy_report* report) { delete report; }

int ptdeploy_report_passed(const ptdeploy_report* report) { return report->report.passed; }

const char* ptdeploy_report_failure(const ptdeploy_report* report, size_t index) {
  return line_of(report->report.failures, index);
}

const char* ptdeploy_report_note(const ptdeploy_report* report, size_t index) {
  return line_of(report->report.notes, index);
}

size_t ptdeploy_report_cases(const ptdeploy_report* report) { return report->report.cases.size(); }

ptdeploy_status ptdeploy_report_case(const ptdeploy_report* report, size_t index,
                                     ptdeploy_parity_case* one) {
  return guarded([&] {
    const auto& cases = report->report.cases;
    if (index >= cases.size())
      throw ptdeploy::InputError("The report has " + std::to_string(cases.size()) +
                                 " cases; there is none with index " + std::to_string(index) + ".");
    const ptdeploy::ParityCase& from = cases[index];
    *one = {from.name.c_str(),   or_nan(from.max_abs), or_nan(from.mean_abs),
            or_nan(from.cosine), or_nan(from.kl),      from.top1_agreement,
            from.passed};
  });
}

}  // extern "C"
