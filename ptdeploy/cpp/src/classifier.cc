// SEQ_CLS: classes, or numbers, for a text.
#include "labelling.hpp"
#include "layout.hpp"
#include "schema.hpp"

namespace ptdeploy::detail {
namespace {

class Classifier : public Labelling {
 public:
  using Labelling::Labelling;

  std::vector<Classification> classify(const std::vector<Ids>& rows, const Chosen& chosen,
                                       std::size_t batch_size,
                                       const std::vector<Ids>& segments) const override {
    for (const RowPrompt& one : chosen.prompts)
      if (one->info.head == Head::regression)
        throw InputError(state_.bundle.path + ": the prompt " + quoted(one->name) +
                             ": its head is a regression, and gives no classes.",
                         "Its logits are the values.");
    std::vector<Classification> out;
    run(rows, chosen, batch_size, segments,
        [&](const Ids&, const PromptInfo& prompt, const float* logits) {
          const std::size_t labels = columns(prompt);
          Classification one;
          one.probabilities =
              prompt.head == Head::sigmoid ? sigmoid(logits, labels) : softmax(logits, labels);
          one.index = likeliest(one.probabilities);
          one.label = prompt.labels[one.index];
          one.probability = one.probabilities[one.index];
          out.push_back(std::move(one));
        });
    return out;
  }

  std::vector<std::vector<double>> probabilities(const std::vector<Ids>& rows,
                                                 const Chosen& chosen, std::size_t batch_size,
                                                 const std::vector<Ids>& segments) const override {
    std::vector<std::vector<double>> out;
    for (Classification& one : classify(rows, chosen, batch_size, segments))
      out.push_back(std::move(one.probabilities));
    return out;
  }
};

}  // namespace

const TaskKind kClassifier = {
    "SEQ_CLS",
    /*one_answer=*/true,
    /*writes=*/false,
    /*any_head=*/true,
    /*takes_base=*/false,
    [](const Manifest& manifest) { require_classifier(manifest, false); },
    [](const EngineState& state) -> std::unique_ptr<TaskEngine> {
      return std::make_unique<Classifier>(state);
    },
};

}  // namespace ptdeploy::detail
