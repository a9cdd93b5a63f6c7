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
    printf("%s|%.17g|%.17g|%d\n", one.name, one.max_abs, one.top1_agreement, one.passed);
  printf("%d %s\n", runs == ptdeploy_report_cases(report), ptdeploy_last_error());
  for (i = 0; ptdeploy_report_failure(report, i); ++i)
    printf("%s\n", ptdeploy_report_failure(report, i));
  for (i = 0; ptdeploy_report_note(report, i); ++i) printf("%s\n", ptdeploy_report_note(report, i));
  ptdeploy_report_close(report);
  return 0;
}

/* With a second argument: holds it against its stored reference instead. */
int main(int argc, char** argv) {
  ptdeploy_engine* engine = NULL;
  int code;
  ptdeploy_status status = ptdeploy_open(argc > 1 ? argv[1] : "", NULL, 0, 0, &engine);
  if (status != PTDEPLOY_OK) return failed("open", status);
  printf("%s %d %lld %lld\n", ptdeploy_version(), (int)ptdeploy_get_task(engine),
         (long long)ptdeploy_max_sequence(engine), (long long)ptdeploy_vocab_size(engine));
  if (argc > 2)
    code = parity(engine);
  else
    code = ptdeploy_get_task(engine) == PTDEPLOY_CAUSAL_LM ? continuation(engine) : classes(engine);
  ptdeploy_close(engine);
  return code;
}
