// Answers requests on standard input, one a line, words apart by tabs, with one line of JSON each.
// Rows are "5,6,7;8,9"; floats go out as their bits, so that equal means equal. A prompt is "+NAME",
// "-" for the base model or "*" for the default one; prompts are "all +NAME" or "each +NAME - *".
#include <cmath>
#include <cstring>
#include <iostream>
#include <locale>
#include <map>
#include <sstream>

#include "ptdeploy/ptdeploy.hpp"

namespace {

using ptdeploy::Engine;
using Words = std::vector<std::string>;

Words split(const std::string& text, char at) {
  Words out;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, at);) out.push_back(part);
  return out;
}

ptdeploy::Ids ids_of(const std::string& text) {
  ptdeploy::Ids ids;
  for (const std::string& part : split(text, ',')) ids.push_back(std::stoll(part));
  return ids;
}

std::vector<ptdeploy::Ids> rows_of(const std::string& text) {
  std::vector<ptdeploy::Ids> rows;
  for (const std::string& part : split(text, ';')) rows.push_back(ids_of(part));
  return rows;
}

ptdeploy::Prompt prompt_of(const std::string& text) {
  if (text == "-") return ptdeploy::Prompt::base();
  if (text == "*") return {};
  return text.substr(1);
}

ptdeploy::Prompts prompts_of(const std::string& text) {
  if (text.empty()) return {};
  const Words words = split(text, ' ');
  if (words[0] == "all") return prompt_of(words.at(1));
  std::vector<ptdeploy::Prompt> each;
  for (std::size_t i = 1; i < words.size(); ++i) each.push_back(prompt_of(words[i]));
  return each;
}

// "0a1b": any bytes in a line.
std::string bytes_of(const std::string& hex) {
  std::string out;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
    out += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return out;
}

std::string quoted(const std::string& text) {
  std::ostringstream out;
  out << '"';
  for (unsigned char byte : text) {
    if (byte == '"' || byte == '\\')
      out << '\\' << byte;
    else if (byte < 0x20)
      out << "\\u00" << "0123456789abcdef"[byte >> 4] << "0123456789abcdef"[byte & 15];
    else
      out << byte;
  }
  out << '"';
  return out.str();
}

template <class Items, class Write>
std::string list(const Items& items, Write write) {
  std::string out = "[";
  for (const auto& item : items) out += (out.size() > 1 ? "," : "") + write(item);
  return out + "]";
}

std::string number(double value) {
  if (std::isnan(value)) return "NaN";
  std::ostringstream out;
  out.precision(17);
  out << value;
  return out.str();
}

std::string bits(float value) {
  std::uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  return std::to_string(word);
}

std::string integer(std::int64_t value) { return std::to_string(value); }

std::string written(const ptdeploy::Generated& one) {
  static const char* const kStopped[] = {"length", "eos", "cancelled", "caller",
                                         "stop"};
  return "{\"token_ids\":" + list(one.token_ids, integer) + ",\"text\":" + quoted(one.text) +
         ",\"stopped\":\"" +
         kStopped[static_cast<int>(one.stopped)] + "\",\"logprobs\":" + list(one.logprobs, number) +
         "}";
}

std::string truth(bool value) { return value ? "true" : "false"; }

std::string measure(const std::optional<double>& value) { return value ? number(*value) : "null"; }

std::string report_text(const ptdeploy::ParityReport& report) {
  std::string out = "{\"passed\":" + truth(report.passed) + ",\"prompt\":" + quoted(report.prompt) +
                    ",\"prompts\":" + list(report.prompts, report_text) +
                    ",\"reference\":" + quoted(report.reference) +
                    ",\"largest_allowed\":" + measure(report.largest_allowed) +
                    ",\"own_allowed\":" + measure(report.own_allowed) +
                    ",\"decode_allowed\":" + measure(report.decode_allowed) +
                    ",\"texts_not_compared\":" + std::to_string(report.texts_not_compared) +
                    ",\"failures\":" + list(report.failures, quoted) +
                    ",\"notes\":" + list(report.notes, quoted) + ",\"quality\":";
  if (const auto& quality = report.quality)
    out += "{\"evaluated_on\":" + quoted(quality->evaluated_on) +
           ",\"texts\":" + std::to_string(quality->texts) +
           ",\"positions\":" + std::to_string(quality->positions) +
           ",\"top1_agreement\":" + number(quality->top1_agreement) +
           ",\"perplexity_ratio\":" + measure(quality->perplexity_ratio) +
           ",\"logits_error\":" + measure(quality->logits_error) +
           ",\"largest_share\":" + measure(quality->largest_share) +
           ",\"detectable\":" + measure(quality->detectable) +
           ",\"clear\":" + measure(quality->clear) +
           ",\"near_ties\":" + measure(quality->near_ties) +
           ",\"rms_error\":" + measure(quality->rms_error) + "}";
  else
    out += "null";
  auto size = [](std::size_t n) { return std::to_string(n); };
  auto one_case = [&](const ptdeploy::ParityCase& one) {
    return "{\"name\":" + quoted(one.name) + ",\"lengths\":" + list(one.lengths, size) +
           ",\"max_abs\":" + measure(one.max_abs) + ",\"mean_abs\":" + measure(one.mean_abs) +
           ",\"cosine\":" + measure(one.cosine) + ",\"kl\":" + measure(one.kl) +
           ",\"top1_agreement\":" + number(one.top1_agreement) +
           ",\"passed\":" + truth(one.passed) + ",\"mixed\":" + truth(one.mixed) +
           ",\"without_prompt\":" + truth(one.without_prompt) +
           ",\"own_max_abs\":" + measure(one.own_max_abs) + "}";
  };
  auto one_row = [](const ptdeploy::ParityGreedy& one) {
    return "{\"length\":" + std::to_string(one.length) +
           ",\"agreed\":" + std::to_string(one.agreed) + ",\"total\":" + std::to_string(one.total) +
           ",\"passed\":" + truth(one.passed) + ",\"mixed\":" + truth(one.mixed) +
           ",\"without_prompt\":" + truth(one.without_prompt) +
           ",\"behind\":" + measure(one.behind) +
           ",\"steps_apart\":" + measure(one.steps_apart) + "}";
  };
  auto one_effect = [](const ptdeploy::ParityEffect& one) {
    return "{\"other\":" + (one.other.empty() ? "null" : quoted(one.other)) +
           ",\"without_prompt\":" + truth(one.without_prompt) +
           ",\"missing\":" + measure(one.missing) + ",\"error\":" + measure(one.error) +
           ",\"positions\":" + std::to_string(one.positions) +
           ",\"told\":" + truth(one.told) + ",\"passed\":" + truth(one.passed) + "}";
  };
  return out + ",\"cases\":" + list(report.cases, one_case) +
         ",\"effects\":" + list(report.effects, one_effect) +
         ",\"greedy\":" + list(report.greedy, one_row) + "}";
}

std::string info_text(const ptdeploy::BundleInfo& info) {
  return "{\"prompt\":" + quoted(info.prompt) + ",\"labels\":" + list(info.labels, quoted) +
         ",\"route\":" + quoted(info.route) +
         ",\"num_virtual_tokens\":" + integer(info.num_virtual_tokens) +
         ",\"prefix_kv\":" + truth(info.prefix_kv) +
         ",\"max_sequence\":" + integer(info.max_sequence) +
         ",\"max_context\":" + integer(info.max_context) +
         ",\"columns\":" + std::to_string(info.columns) + "}";
}

std::string prompt_text(const ptdeploy::PromptInfo& info) {
  static const char* const kHeads[] = {"softmax", "sigmoid", "regression"};
  return "{\"name\":" + quoted(info.name) + ",\"kind\":" + quoted(info.kind) + ",\"head\":\"" +
         kHeads[static_cast<int>(info.head)] + "\",\"labels\":" + list(info.labels, quoted) +
         ",\"num_virtual_tokens\":" + integer(info.num_virtual_tokens) +
         ",\"prefix_kv\":" + truth(info.prefix_kv) +
         ",\"max_sequence\":" + integer(info.max_sequence) +
         ",\"columns\":" + std::to_string(info.columns) + "}";
}

// Options are "max_new_tokens=5 eos_token_ids=1,2 ...".
// Each row's pieces of text, of the last request that asked for them.
std::map<std::size_t, Words> pieces;

ptdeploy::GenerateOptions options_of(const std::string& text, std::size_t& stop_after) {
  ptdeploy::GenerateOptions out;
  stop_after = 0;
  for (const std::string& word : split(text, ' ')) {
    const std::string name = word.substr(0, word.find('='));
    const std::string value = word.substr(word.find('=') + 1);
    if (name == "max_new_tokens") out.max_new_tokens = std::stoll(value);
    if (name == "min_new_tokens") out.min_new_tokens = std::stoll(value);
    if (name == "do_sample") out.do_sample = value == "True";
    if (name == "temperature") out.temperature = std::stod(value);
    if (name == "top_k") out.top_k = std::stoll(value);
    if (name == "top_p") out.top_p = std::stod(value);
    if (name == "min_p") out.min_p = std::stod(value);
    if (name == "repetition_penalty") out.repetition_penalty = std::stod(value);
    if (name == "eos_token_ids") out.eos_token_ids = ids_of(value);
    if (name == "seed") out.seed = std::stoull(value);
    if (name == "logprobs") out.logprobs = true;
    if (name == "text") out.text = true;
    if (name == "stop")
      for (const std::string& one : split(value, ',')) out.stop.push_back(bytes_of(one));
    if (name == "pieces") {  // so many of a row, or all
      pieces.clear();
      out.on_text = [most = std::stoull(value)](std::size_t row, const std::string& piece) {
        pieces[row].push_back(piece);
        return pieces[row].size() != most;
      };
    }
    if (name == "stop_after") stop_after = std::stoull(value);
    if (name == "cancel_after")
      out.cancelled = [left = std::stoll(value)]() mutable { return left-- <= 0; };
  }
  return out;
}

ptdeploy::OnToken stop_after(std::size_t count) {
  if (count == 0) return {};
  return [count, taken = std::map<std::size_t, std::size_t>()](
             std::size_t row, std::int64_t) mutable { return ++taken[row] < count; };
}

// Numbers as a program with a locale may have them: 1.234,5.
struct Commas : std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\3"; }
};

struct Open {
  std::map<std::string, Engine> engines;
  std::map<std::string, ptdeploy::Session> sessions;

  std::string answer(const Words& words) {
    const std::string& what = words.at(0);
    auto word = [&](std::size_t i) { return i < words.size() ? words[i] : std::string(); };
    std::size_t stop = 0;
    if (what == "open") {
      ptdeploy::OpenOptions options;
      if (!word(3).empty()) options.threads = std::stoi(word(3));
      options.device = word(4);
      options.map_weights = word(5) == "map";
      if (!word(6).empty()) options.max_prompts = std::stoull(word(6));
      engines.erase(word(1));
      engines.emplace(word(1), Engine::open(word(2), options));
      return "{}";
    }
    if (what == "printable")
      return list(std::vector<bool>{false, true}, [&](bool lines) {
        return quoted(ptdeploy::printable(bytes_of(word(1)), lines));
      });
    if (what == "commas")
      return std::locale::global(std::locale(std::locale::classic(), new Commas)), "{}";
    if (what == "pieces")
      return list(pieces, [](const auto& row) { return list(row.second, quoted); });
    if (what == "close") return engines.erase(word(1)), "{}";
    if (what.rfind("session", 0) == 0) return session(what, word(1), word(2));
    Engine& engine = engines.at(word(1));
    if (what == "encode") return list(engine.encode(bytes_of(word(2))), integer);
    if (what == "decode") return quoted(engine.decode(ids_of(word(2))));
    if (what == "load") return engine.load_prompt(word(2), word(3)), "{}";
    if (what == "unload") return engine.unload_prompt(word(2)), "{}";
    if (what == "prompts") return list(engine.prompts(), prompt_text);
    if (what == "prompt") return prompt_text(engine.prompt(prompt_of(word(2))));
    if (what == "info") return info_text(engine.info());
    if (what == "read") return quoted(engine.read(word(2)).value_or(""));
    if (what == "verify") return report_text(engine.verify());
    if (what == "logits")
      return list(engine.logits(rows_of(word(2)), prompts_of(word(4)), rows_of(word(3))),
                  [](const ptdeploy::Logits& one) { return list(one.values, bits); });
    if (what == "classify")
      return list(engine.classify(rows_of(word(2)), prompts_of(word(4)), 16, rows_of(word(3))),
                  [](const ptdeploy::Classification& one) {
                    return "{\"label\":" + quoted(one.label) +
                           ",\"index\":" + std::to_string(one.index) +
                           ",\"probabilities\":" + list(one.probabilities, number) + "}";
                  });
    if (what == "tag")
      return list(engine.tag(rows_of(word(2)), prompts_of(word(4)), 16, rows_of(word(3))),
                  [](const std::vector<ptdeploy::TokenLabel>& row) {
                    return list(row, [](const ptdeploy::TokenLabel& one) {
                      return "{\"token_id\":" + integer(one.token_id) +
                             ",\"label\":" + quoted(one.label) +
                             ",\"probability\":" + number(one.probability) + "}";
                    });
                  });
    if (what == "generate") {
      const ptdeploy::GenerateOptions options = options_of(word(3), stop);
      return list(engine.generate(rows_of(word(2)), prompts_of(word(4)), options, stop_after(stop)),
                  written);
    }
    throw std::runtime_error("unknown request " + what);
  }

  std::string session(const std::string& what, const std::string& name, const std::string& given) {
    if (what == "session-open") {
      const Words parts = split(given, ' ');
      sessions.erase(name);
      const ptdeploy::Prompt prompt = prompt_of(parts.size() > 2 ? parts[2] : "*");
      sessions.emplace(name, engines.at(parts.at(0)).session(prompt, std::stoull(parts.at(1))));
      return "{}";
    }
    ptdeploy::Session& session = sessions.at(name);
    std::size_t stop = 0;
    if (what == "session-append") return session.append(ids_of(given)), "{}";
    if (what == "session-generate") {
      const ptdeploy::GenerateOptions options = options_of(given, stop);
      return written(session.generate(options, stop_after(stop)));
    }
    if (what == "session-rollback") return session.rollback(std::stoull(given)), "{}";
    if (what == "session-fork") {
      sessions.erase(given);
      return sessions.emplace(given, session.fork()), "{}";
    }
    if (what == "session-ids") return list(session.token_ids(), integer);
    throw std::runtime_error("unknown request " + what);
  }
};

std::string refused(const char* kind, const ptdeploy::Error& error) {
  return std::string("{\"error\":\"") + kind + "\",\"problem\":" + quoted(error.problem()) +
         ",\"fix\":" + quoted(error.fix()) + "}";
}

}  // namespace

int main() {
  Open open;
  for (std::string line; std::getline(std::cin, line);) {
    std::string answer;
    try {
      answer = open.answer(split(line, '\t'));
    } catch (const ptdeploy::BundleError& error) {
      answer = refused("BundleError", error);
    } catch (const ptdeploy::OutOfMemory& error) {
      answer = refused("OutOfMemory", error);
    } catch (const ptdeploy::InputError& error) {
      answer = refused("InputError", error);
    } catch (const ptdeploy::TargetUnavailable& error) {
      answer = refused("TargetUnavailable", error);
    } catch (const ptdeploy::EngineFault& error) {
      answer = refused("EngineFault", error);
    } catch (const std::bad_alloc&) {
      answer = "{\"error\":\"bad_alloc\"}";
    }
    std::cout << answer << std::endl;
  }
}
