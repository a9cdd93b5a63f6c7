// TOKEN_CLS: a class for each token of a text.
#include "labelling.hpp"
#include "layout.hpp"

namespace ptdeploy::detail {
namespace {

class TokenClassifier : public Labelling {
 public:
  using Labelling::Labelling;

  std::vector<std::vector<TokenLabel>> tag(const std::vector<Ids>& rows, const Chosen& chosen,
                                           std::size_t batch_size,
                                           const std::vector<Ids>& segments) const override {
    std::vector<std::vector<TokenLabel>> out;
    run(rows, chosen, batch_size, segments,
        [&](const Ids& row, const PromptInfo& prompt, const float* logits) {
          const std::size_t count = columns(prompt);
          std::vector<TokenLabel> labels;
          for (std::size_t i = 0; i < row.size(); ++i) {
            const auto found = softmax(logits + i * count, count);
            const std::size_t index = likeliest(found);
            labels.push_back({row[i], prompt.labels[index], index, found[index], found});
          }
          out.push_back(std::move(labels));
        });
    return out;
  }

  std::vector<std::vector<double>> probabilities(const std::vector<Ids>& rows,
                                                 const Chosen& chosen, std::size_t batch_size,
                                                 const std::vector<Ids>& segments) const override {
    std::vector<std::vector<double>> out;
    for (std::vector<TokenLabel>& row : tag(rows, chosen, batch_size, segments))
      for (TokenLabel& token : row) out.push_back(std::move(token.probabilities));
    return out;
  }
};

}  // namespace

const TaskKind kTokenClassifier = {
    "TOKEN_CLS",
    /*one_answer=*/false,
    /*writes=*/false,
    /*any_head=*/false,
    /*takes_base=*/false,
    [](const Manifest& manifest) { require_classifier(manifest, true); },
    [](const EngineState& state) -> std::unique_ptr<TaskEngine> {
      return std::make_unique<TokenClassifier>(state);
    },
};

}  // namespace ptdeploy::detail
