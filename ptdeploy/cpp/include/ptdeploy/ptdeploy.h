/* ptdeploy's C ABI: for C, and for every language that can call C. docs/cpp.md explains.
 *
 * Every function that can fail gives a status. Then ptdeploy_last_error() says why, to the thread
 * that called. No exception leaves this library. What is opened must be closed.
 *
 * Rows of token ids are given one after the other in `ids`, with their sizes in `lengths`. Where a
 * function takes `token_type_ids` too, they are the segment of each of `ids`; null: all 0.
 * Another pointer that is null where one is needed is refused, and so is a count past 2^31 - 1: of
 * rows, token ids, prompts, bytes, or new tokens, the `capacity` for those too. `max_prompts`, and
 * the `capacity` for any other answer, may be of any size. Refused is also, before anything is read,
 * a count that cannot be right: a row that is empty or longer than the engine takes, more rows than
 * it generates at once, more ids than a session has room for, more EOS ids than there are ids. Words
 * for people (errors, and all of a report) come printable: what would act on a terminal is
 * escaped. A label is what the bundle says: escape it before you print it.
 *
 * A prompt is given by its name. Null is the bundle's default prompt (the base model where it has
 * none), and PTDEPLOY_BASE_MODEL the base model without a prompt: no prompt has that name.
 */
#ifndef PTDEPLOY_H
#define PTDEPLOY_H

#include <stddef.h>
#include <stdint.h>

#include "ptdeploy/export.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PTDEPLOY_BASE_MODEL "/base model/"

typedef struct ptdeploy_engine ptdeploy_engine;
typedef struct ptdeploy_session ptdeploy_session;
typedef struct ptdeploy_report ptdeploy_report;
typedef struct ptdeploy_prompt_list ptdeploy_prompt_list;

typedef enum ptdeploy_status {
  PTDEPLOY_OK = 0,
  PTDEPLOY_BUNDLE_ERROR = 1,       /* the bundle is missing, damaged, or of another version */
  PTDEPLOY_INPUT_ERROR = 2,        /* the request does not fit */
  PTDEPLOY_TARGET_UNAVAILABLE = 3, /* target or device cannot run here */
  PTDEPLOY_FAULT = 4,              /* the engine failed */
  PTDEPLOY_OUT_OF_MEMORY = 5       /* what was asked for does not fit in memory */
} ptdeploy_status;

typedef enum ptdeploy_task {
  PTDEPLOY_SEQ_CLS = 0,
  PTDEPLOY_TOKEN_CLS = 1,
  PTDEPLOY_CAUSAL_LM = 2
} ptdeploy_task;

typedef enum ptdeploy_head {
  PTDEPLOY_SOFTMAX = 0,   /* one class is true: probabilities sum to 1 */
  PTDEPLOY_SIGMOID = 1,   /* each class is true or not: each has its own probability */
  PTDEPLOY_REGRESSION = 2 /* logits are the answer; there are no probabilities */
} ptdeploy_head;

typedef enum ptdeploy_stopped {
  PTDEPLOY_LENGTH = 0,
  PTDEPLOY_EOS = 1,
  PTDEPLOY_CANCELLED = 2,
  PTDEPLOY_CALLER = 3,
  PTDEPLOY_STOP = 4 /* a stop string */
} ptdeploy_stopped;

PTDEPLOY_API const char* ptdeploy_version(void);

/* Why this thread's last failed call failed: what is wrong and where, then how to mend it, which
 * may be empty. Never null; good until this thread's next call. */
PTDEPLOY_API const char* ptdeploy_last_error(void);
PTDEPLOY_API const char* ptdeploy_last_fix(void);

/* `device` null: the bundle's own. `threads` 0: the engine's default. */
PTDEPLOY_API ptdeploy_status ptdeploy_open(const char* path, const char* device, int threads,
                                           int map_weights, ptdeploy_engine** engine);
/* The same; at most `max_prompts` prompts (0: all) stay in memory beside those that requests are
 * using: of more, the least recently used is read again from its file when it is asked for. */
PTDEPLOY_API ptdeploy_status ptdeploy_open_bounded(const char* path, const char* device,
                                                   int threads, int map_weights,
                                                   size_t max_prompts, ptdeploy_engine** engine);
PTDEPLOY_API void ptdeploy_close(ptdeploy_engine* engine); /* sessions may outlive it */

/* What belongs to a prompt is the default prompt's. */
PTDEPLOY_API ptdeploy_task ptdeploy_get_task(const ptdeploy_engine* engine);
PTDEPLOY_API ptdeploy_head ptdeploy_get_head(const ptdeploy_engine* engine);
PTDEPLOY_API int64_t ptdeploy_max_sequence(const ptdeploy_engine* engine);
PTDEPLOY_API int64_t ptdeploy_vocab_size(const ptdeploy_engine* engine);
/* How many segments the model tells apart; 0 for a model without, which takes none. */
PTDEPLOY_API int64_t ptdeploy_type_vocab_size(const ptdeploy_engine* engine);
/* Columns of logits: classes, or the vocabulary. */
PTDEPLOY_API size_t ptdeploy_columns(const ptdeploy_engine* engine);
/* The name of a class, or null. Good until the engine is closed. */
PTDEPLOY_API const char* ptdeploy_label(const ptdeploy_engine* engine, size_t index);

/* Takes in a prompt, to be asked for by `name`; null: the name that it has there. `path` is a pack, or
 * a bundle of which it is the prompt of that name; null: the only one, or else the default one. Both
 * must have been proven over this very engine. Requests go on meanwhile. */
PTDEPLOY_API ptdeploy_status ptdeploy_load_prompt(ptdeploy_engine* engine, const char* path,
                                                  const char* name);
/* Takes a prompt out, and waits until the requests that use it are over. A session keeps its own. The
 * default prompt stays. */
PTDEPLOY_API ptdeploy_status ptdeploy_unload_prompt(ptdeploy_engine* engine, const char* name);

/* What a prompt is. `name` and `kind` are good until the list is closed. */
typedef struct ptdeploy_prompt {
  const char* name;
  const char* kind;
  ptdeploy_head head;
  int64_t num_virtual_tokens;
  int64_t max_sequence; /* most tokens of text in a row beside it */
  size_t columns;       /* of logits: classes, or the vocabulary */
} ptdeploy_prompt;
/* The prompts that can be asked for just now: the bundle's, then those loaded since. Later changes do
 * not show in the list. */
PTDEPLOY_API ptdeploy_status ptdeploy_list_prompts(const ptdeploy_engine* engine,
                                                   ptdeploy_prompt_list** list);
PTDEPLOY_API void ptdeploy_prompt_list_close(ptdeploy_prompt_list* list);
PTDEPLOY_API size_t ptdeploy_prompt_list_size(const ptdeploy_prompt_list* list);
PTDEPLOY_API ptdeploy_status ptdeploy_prompt_at(const ptdeploy_prompt_list* list, size_t index,
                                                ptdeploy_prompt* prompt);
/* The name of a class of one of them, or null. Good until the list is closed. */
PTDEPLOY_API const char* ptdeploy_prompt_label(const ptdeploy_prompt_list* list, size_t index,
                                               size_t label);

/* Rows, each with its own prompt. Start from ptdeploy_default_request(). */
typedef struct ptdeploy_request {
  size_t size; /* sizeof(ptdeploy_request), so that fields can be added */
  const int64_t* ids;
  const int64_t* token_type_ids; /* null: all 0 */
  const size_t* lengths;
  size_t rows;
  const char* const* prompts; /* num_prompts of them; may be null where that is 0 */
  size_t num_prompts;         /* 0: the default prompt; 1: one for all rows; else one for each */
} ptdeploy_request;
PTDEPLOY_API ptdeploy_request ptdeploy_default_request(void);

/* As ptdeploy_probabilities and ptdeploy_logits, with prompts: a row has as many columns as its own
 * prompt, which go to `columns`, one entry for each row, unless that is null. Rows follow each other
 * without gaps. Refused, with nothing written, where they are more than `capacity` numbers. */
PTDEPLOY_API ptdeploy_status ptdeploy_request_probabilities(const ptdeploy_engine* engine,
                                                            const ptdeploy_request* request,
                                                            double* probabilities, size_t capacity,
                                                            size_t* columns);
PTDEPLOY_API ptdeploy_status ptdeploy_request_logits(const ptdeploy_engine* engine,
                                                     const ptdeploy_request* request, float* logits,
                                                     size_t capacity, size_t* columns);

/* Without prompts: each row has the default one. */

/* Probabilities, columns() for each row (SEQ_CLS) or for each token of each row (TOKEN_CLS). */
PTDEPLOY_API ptdeploy_status ptdeploy_probabilities(const ptdeploy_engine* engine,
                                                    const int64_t* ids,
                                                    const int64_t* token_type_ids,
                                                    const size_t* lengths, size_t rows,
                                                    double* probabilities);
/* Scores before softmax, columns() for each row (SEQ_CLS) or for each token (other tasks). */
PTDEPLOY_API ptdeploy_status ptdeploy_logits(const ptdeploy_engine* engine, const int64_t* ids,
                                             const int64_t* token_type_ids, const size_t* lengths,
                                             size_t rows, float* logits);

/* The token ids of `bytes` bytes of UTF-8, with the special tokens that belong around a text, by the
 * program that `ptdeploy compile --cpp-tokenizer` wrote into the bundle. `count` gets how many they are,
 * also where that is more than `capacity`: then the call is refused and no id is written. */
PTDEPLOY_API ptdeploy_status ptdeploy_encode(const ptdeploy_engine* engine, const char* text,
                                             size_t bytes, int64_t* ids, size_t capacity,
                                             size_t* count);
/* The text of token ids without special tokens, by the bundle's tokenizer.json, and a zero byte behind
 * it. `bytes` gets its size without that byte, also where the two do not fit in `capacity` bytes: then
 * the call is refused and nothing of it is written. It may hold zeros, and is not printable. */
PTDEPLOY_API ptdeploy_status ptdeploy_decode(const ptdeploy_engine* engine, const int64_t* ids,
                                             size_t count, char* text, size_t capacity,
                                             size_t* bytes);

/* Gives 0 to end that row after this token. */
typedef int (*ptdeploy_on_token)(void* user, size_t row, int64_t token);
/* A piece of a row's text in UTF-8, with a zero byte behind it that `bytes` does not count, which the
 * call may read and not keep. Gives 0 to end that row. */
typedef int (*ptdeploy_on_text)(void* user, size_t row, const char* text, size_t bytes);

/* Start from ptdeploy_default_options(): there every field means "the model's own". */
typedef struct ptdeploy_options {
  size_t size; /* sizeof(ptdeploy_options), so that fields can be added */
  int64_t max_new_tokens, min_new_tokens, top_k;        /* -1: the model's own */
  int do_sample;                                        /* -1: the model's own */
  double temperature, top_p, min_p, repetition_penalty; /* negative: the model's own */
  const int64_t* eos_token_ids; /* null: the model's own; else num_eos_token_ids of them */
  size_t num_eos_token_ids;
  int has_seed;
  uint64_t seed;
  const volatile int* cancel; /* null, or set to 1 from any thread to end all rows */
  ptdeploy_on_token on_token; /* null, or called with each token as soon as it is chosen */
  void* user;                 /* given to on_token and on_text */
  const char* const* stop;    /* num_stop strings of UTF-8, at which a row ends; null where that is 0 */
  size_t num_stop;
  ptdeploy_on_text on_text;   /* null, or called with each piece of a row's text as soon as no later
                                 token can change it; all of them end before a stop string */
} ptdeploy_options;
PTDEPLOY_API ptdeploy_options ptdeploy_default_options(void);

/* Continues all rows. Row i's tokens go to tokens[i * capacity ...]; a row ends, with
 * PTDEPLOY_LENGTH, when it has `capacity` of them. `counts` and `stopped` get one entry for each
 * row; `logprobs` too one for each token, unless null. `options` may be null. */
PTDEPLOY_API ptdeploy_status ptdeploy_generate(const ptdeploy_engine* engine, const int64_t* ids,
                                               const size_t* lengths, size_t rows,
                                               const ptdeploy_options* options, size_t capacity,
                                               int64_t* tokens, size_t* counts,
                                               ptdeploy_stopped* stopped, double* logprobs);

/* The same with prompts; a request to generate has no token_type_ids. */
PTDEPLOY_API ptdeploy_status ptdeploy_request_generate(const ptdeploy_engine* engine,
                                                       const ptdeploy_request* request,
                                                       const ptdeploy_options* options,
                                                       size_t capacity, int64_t* tokens,
                                                       size_t* counts, ptdeploy_stopped* stopped,
                                                       double* logprobs);

/* One sequence that keeps its keys and values between turns, of at most max_tokens tokens of text
 * (0: the model's limit). One thread at a time. */
PTDEPLOY_API ptdeploy_status ptdeploy_session_open(const ptdeploy_engine* engine, size_t max_tokens,
                                                   ptdeploy_session** session);
PTDEPLOY_API ptdeploy_status ptdeploy_session_open_with(const ptdeploy_engine* engine,
                                                        const char* prompt, size_t max_tokens,
                                                        ptdeploy_session** session);
PTDEPLOY_API void ptdeploy_session_close(ptdeploy_session* session);
PTDEPLOY_API ptdeploy_status ptdeploy_session_append(ptdeploy_session* session, const int64_t* ids,
                                                     size_t count);
PTDEPLOY_API ptdeploy_status ptdeploy_session_generate(ptdeploy_session* session,
                                                       const ptdeploy_options* options,
                                                       size_t capacity, int64_t* tokens,
                                                       size_t* count, ptdeploy_stopped* stopped,
                                                       double* logprobs);
PTDEPLOY_API ptdeploy_status ptdeploy_session_rollback(ptdeploy_session* session, size_t tokens);
PTDEPLOY_API ptdeploy_status ptdeploy_session_fork(const ptdeploy_session* session,
                                                   ptdeploy_session** fork);
PTDEPLOY_API size_t ptdeploy_session_length(const ptdeploy_session* session);

/* Runs the inputs stored in the bundle, of each of its prompts and of batches that mix them, and holds
 * the answers against those stored beside them. A mismatch is no failure of the call: ask
 * ptdeploy_report_passed(). A report is of all of them. */
PTDEPLOY_API ptdeploy_status ptdeploy_verify(const ptdeploy_engine* engine,
                                             ptdeploy_report** report);
PTDEPLOY_API void ptdeploy_report_close(ptdeploy_report* report);
PTDEPLOY_API int ptdeploy_report_passed(const ptdeploy_report* report);
/* What does not match, and what there is to know besides, in words; null from the last index on.
 * Good until the report is closed, as is a case's name. */
PTDEPLOY_API const char* ptdeploy_report_failure(const ptdeploy_report* report, size_t index);
PTDEPLOY_API const char* ptdeploy_report_note(const ptdeploy_report* report, size_t index);

/* One batch, held against the reference; a measure that is not finite is NaN. */
typedef struct ptdeploy_parity_case {
  const char* name;
  double max_abs, mean_abs, cosine, kl, top1_agreement;
  int passed;
} ptdeploy_parity_case;
PTDEPLOY_API size_t ptdeploy_report_cases(const ptdeploy_report* report);
PTDEPLOY_API ptdeploy_status ptdeploy_report_case(const ptdeploy_report* report, size_t index,
                                                  ptdeploy_parity_case* one);
/* Whose a case is; PTDEPLOY_BASE_MODEL of the base model alone, null from the last index on. */
PTDEPLOY_API const char* ptdeploy_report_case_prompt(const ptdeploy_report* report, size_t index);

#ifdef __cplusplus
}
#endif

#endif
