/* c_api BUNDLE: opens a bundle through the C ABI, asks it what its task can, and prints that. */
#include <stdio.h>
#include <string.h>

#include "ptdeploy/ptdeploy.h"

static const int64_t kIds[] = {5, 6, 7, 40, 9, 10};
static const size_t kLengths[] = {3, 1, 2};

static int failed(const char* what, ptdeploy_status status) {
  printf("%s: %d: %s\n", what, (int)status, ptdeploy_last_error());
  return 1;
}

static int print_token(void* user, size_t row, int64_t token) {
  size_t* calls = user;
  ++*calls;
  (void)row;
  (void)token;
  return 1;
}

static void print_tokens(const int64_t* tokens, size_t count, ptdeploy_stopped stopped) {
  size_t i;
  for (i = 0; i < count; ++i) printf("%lld ", (long long)tokens[i]);
  printf("stopped %d\n", (int)stopped);
}

static int classes(const ptdeploy_engine* engine) {
  double probabilities[6 * 16];
  const size_t columns = ptdeploy_columns(engine);
  const size_t lines = ptdeploy_get_task(engine) == PTDEPLOY_TOKEN_CLS ? 6 : 3;
  size_t i, j;
  ptdeploy_status status;
  if (columns > 16) return 1;
  status = ptdeploy_probabilities(engine, kIds, NULL, kLengths, 3, probabilities);
  if (status != PTDEPLOY_OK) return failed("probabilities", status);
  for (i = 0; i < lines; ++i) {
    for (j = 0; j < columns; ++j)
      printf("%s %.17g ", ptdeploy_label(engine, j), probabilities[i * columns + j]);
    printf("\n");
  }
  return ptdeploy_label(engine, columns) != NULL;
}

static int conversation(const ptdeploy_engine* engine, const ptdeploy_options* options) {
  ptdeploy_session *session = NULL, *fork = NULL;
  int64_t tokens[8];
  size_t count;
  ptdeploy_stopped stopped;
  ptdeploy_status status = ptdeploy_session_open(engine, 40, &session);
  if (status == PTDEPLOY_OK) status = ptdeploy_session_append(session, kIds, 3);
  if (status == PTDEPLOY_OK)
    status = ptdeploy_session_generate(session, options, 8, tokens, &count, &stopped, NULL);
  if (status == PTDEPLOY_OK) print_tokens(tokens, count, stopped);
  if (status == PTDEPLOY_OK) status = ptdeploy_session_rollback(session, 8);
  if (status == PTDEPLOY_OK) status = ptdeploy_session_fork(session, &fork);
  if (status == PTDEPLOY_OK)
    status = ptdeploy_session_generate(fork, options, 8, tokens, &count, &stopped, NULL);
  if (status == PTDEPLOY_OK) print_tokens(tokens, count, stopped);
  printf("lengths %d %d\n", (int)ptdeploy_session_length(session),
         (int)ptdeploy_session_length(fork));
  ptdeploy_session_close(fork);
  ptdeploy_session_close(session);
  return status == PTDEPLOY_OK ? 0 : failed("session", status);
}

static int continuation(const ptdeploy_engine* engine) {
  ptdeploy_options options = ptdeploy_default_options();
  int64_t tokens[3 * 8];
  size_t counts[3], calls = 0, i;
  ptdeploy_stopped stopped[3];
  ptdeploy_status status;
  static const int64_t none[1] = {0};
  options.max_new_tokens = 20;
  options.eos_token_ids = none;
  options.num_eos_token_ids = 0;
  options.on_token = print_token;
  options.user = &calls;
  status = ptdeploy_generate(engine, kIds, kLengths, 3, &options, 8, tokens, counts, stopped, NULL);
  if (status != PTDEPLOY_OK) return failed("generate", status);
  for (i = 0; i < 3; ++i) print_tokens(tokens + 8 * i, counts[i], stopped[i]);
  printf("calls %d\n", (int)calls);
  if (conversation(engine, &options)) return 1;
  options.temperature = 1.0;
  options.top_p = 1.5;
  status = ptdeploy_generate(engine, kIds, kLengths, 3, &options, 8, tokens, counts, stopped, NULL);
  printf("%d %s\n", (int)status, ptdeploy_last_error());
  options.size = 1;
  status = ptdeploy_generate(engine, kIds, kLengths, 3, &options, 8, tokens, counts, stopped, NULL);
  printf("%d %s | %s\n", (int)status, ptdeploy_last_error(), ptdeploy_last_fix());
  return 0;
}

static int parity(const ptdeploy_engine* engine) {
  ptdeploy_report* report = NULL;
  ptdeploy_parity_case one;
  size_t i, runs = 0;
  ptdeploy_status status = ptdeploy_verify(engine, &report);
  if (status != PTDEPLOY_OK) return failed("verify", status);
  printf("parity %d\n", ptdeploy_report_passed(report));
  for (i = 0; ptdeploy_report_case(report, i, &one) == PTDEPLOY_OK; ++i, ++runs)
    printf("%s|%s|%.17g|%.17g|%d\n", ptdeploy_report_case_prompt(report, i), one.name, one.max_abs,
           one.top1_agreement, one.passed);
  printf("%d %s\n", runs == ptdeploy_report_cases(report), ptdeploy_last_error());
  for (i = 0; ptdeploy_report_failure(report, i); ++i)
    printf("%s\n", ptdeploy_report_failure(report, i));
  for (i = 0; ptdeploy_report_note(report, i); ++i) printf("%s\n", ptdeploy_report_note(report, i));
  ptdeploy_report_close(report);
  return 0;
}

static int list(const ptdeploy_engine* engine) {
  ptdeploy_prompt_list* prompts = NULL;
  ptdeploy_prompt one;
  size_t i, j;
  ptdeploy_status status = ptdeploy_list_prompts(engine, &prompts);
  if (status != PTDEPLOY_OK) return failed("list", status);
  for (i = 0; ptdeploy_prompt_at(prompts, i, &one) == PTDEPLOY_OK; ++i) {
    printf("%s|%s|%d|%lld|%lld|%d", one.name, one.kind, (int)one.head,
           (long long)one.num_virtual_tokens, (long long)one.max_sequence, (int)one.columns);
    for (j = 0; ptdeploy_prompt_label(prompts, i, j); ++j)
      printf("|%s", ptdeploy_prompt_label(prompts, i, j));
    printf("\n");
  }
  printf("%d %s\n", i == ptdeploy_prompt_list_size(prompts), ptdeploy_last_error());
  ptdeploy_prompt_list_close(prompts);
  return 0;
}

/* Rows with prompts, as many numbers as there are, and one fewer. */
static int answers(const ptdeploy_engine* engine, ptdeploy_request* request) {
  double probabilities[64];
  float logits[2048];
  size_t columns[3], total = 0, i;
  const int writes = ptdeploy_get_task(engine) == PTDEPLOY_CAUSAL_LM;
  ptdeploy_status status = ptdeploy_request_logits(engine, request, logits, 2048, columns);
  if (status != PTDEPLOY_OK) return failed("logits", status);
  for (i = 0; i < 3; ++i) total += columns[i] * (writes ? kLengths[i] : 1);
  for (i = 0; i < total; ++i) printf("%.9g ", logits[i]);
  printf("\n%d %d %d\n", (int)columns[0], (int)columns[1], (int)columns[2]);
  status = ptdeploy_request_logits(engine, request, logits, total - 1, NULL);
  printf("%d %s\n", (int)status, ptdeploy_last_error());
  if (writes) return 0;
  status = ptdeploy_request_probabilities(engine, request, probabilities, total, columns);
  if (status != PTDEPLOY_OK) return failed("probabilities", status);
  for (i = 0; i < total; ++i) printf("%.17g ", probabilities[i]);
  printf("\n");
  return 0;
}

static int writing(const ptdeploy_engine* engine, const ptdeploy_request* request) {
  ptdeploy_options options = ptdeploy_default_options();
  ptdeploy_session* session = NULL;
  int64_t tokens[3 * 8];
  size_t counts[3], i;
  ptdeploy_stopped stopped[3];
  static const int64_t none[1] = {0};
  ptdeploy_status status;
  options.eos_token_ids = none;
  options.num_eos_token_ids = 0;
  status = ptdeploy_request_generate(engine, request, &options, 8, tokens, counts, stopped, NULL);
  if (status != PTDEPLOY_OK) return failed("generate", status);
  for (i = 0; i < 3; ++i) print_tokens(tokens + 8 * i, counts[i], stopped[i]);
  status = ptdeploy_session_open_with(engine, PTDEPLOY_BASE_MODEL, 20, &session);
  if (status == PTDEPLOY_OK) status = ptdeploy_session_append(session, kIds, 3);
  if (status == PTDEPLOY_OK)
    status = ptdeploy_session_generate(session, &options, 8, tokens, counts, stopped, NULL);
  if (status == PTDEPLOY_OK) print_tokens(tokens, counts[0], stopped[0]);
  ptdeploy_session_close(session);
  return status == PTDEPLOY_OK ? 0 : failed("session", status);
}

/* What requests with prompts are refused for. */
static void refusals(ptdeploy_engine* engine, ptdeploy_request request) {
  float logits[2048];
  static const char* const nobody[] = {"nobody"};
  request.prompts = nobody;
  request.num_prompts = 1;
  printf("%d ", (int)ptdeploy_request_logits(engine, &request, logits, 2048, NULL));
  printf("%s\n", ptdeploy_last_error());
  request.num_prompts = 2;
  printf("%d ", (int)ptdeploy_request_logits(engine, &request, logits, 2048, NULL));
  printf("%s\n", ptdeploy_last_error());
  request.num_prompts = 1;
  request.prompts = NULL;
  printf("%d ", (int)ptdeploy_request_logits(engine, &request, logits, 2048, NULL));
  printf("%s\n", ptdeploy_last_error());
  request.size = 1;
  printf("%d ", (int)ptdeploy_request_logits(engine, &request, logits, 2048, NULL));
  printf("%s | %s\n", ptdeploy_last_error(), ptdeploy_last_fix());
  printf("%d ", (int)ptdeploy_unload_prompt(engine, "nobody"));
  printf("%s\n", ptdeploy_last_error());
}

static int prompts(ptdeploy_engine* engine, const char* pack) {
  const char* each[3] = {"other", NULL, "again"};
  ptdeploy_request request = ptdeploy_default_request();
  ptdeploy_status status = ptdeploy_load_prompt(engine, pack, NULL);
  if (status == PTDEPLOY_OK) status = ptdeploy_load_prompt(engine, pack, "again");
  if (status != PTDEPLOY_OK) return failed("load", status);
  request.ids = kIds;
  request.lengths = kLengths;
  request.rows = 3;
  request.prompts = each;
  request.num_prompts = 3;
  if (ptdeploy_get_task(engine) == PTDEPLOY_CAUSAL_LM) each[2] = PTDEPLOY_BASE_MODEL;
  if (list(engine) || answers(engine, &request)) return 1;
  if (ptdeploy_get_task(engine) == PTDEPLOY_CAUSAL_LM && writing(engine, &request)) return 1;
  refusals(engine, request);
  status = ptdeploy_unload_prompt(engine, "again");
  return status == PTDEPLOY_OK ? list(engine) : failed("unload", status);
}

/* With a second argument: holds it against its stored reference instead. With a pack behind it: takes
 * that in, and asks for its prompt. */
int main(int argc, char** argv) {
  ptdeploy_engine* engine = NULL;
  int code;
  ptdeploy_status status =
      argc > 3 ? ptdeploy_open_bounded(argv[1], NULL, 0, 0, 1, &engine)
               : ptdeploy_open(argc > 1 ? argv[1] : "", NULL, 0, 0, &engine);
  if (status != PTDEPLOY_OK) return failed("open", status);
  printf("%s %d %lld %lld\n", ptdeploy_version(), (int)ptdeploy_get_task(engine),
         (long long)ptdeploy_max_sequence(engine), (long long)ptdeploy_vocab_size(engine));
  if (argc > 3)
    code = prompts(engine, argv[3]);
  else if (argc > 2)
    code = parity(engine);
  else
    code = ptdeploy_get_task(engine) == PTDEPLOY_CAUSAL_LM ? continuation(engine) : classes(engine);
  ptdeploy_close(engine);
  return code;
}
