// Opens two engines of a bundle and lets them go, the first one first. Then takes a signal on the
// stack that its thread has for signals, and opens the bundle again in a forked process.
#include <ptdeploy/ptdeploy.hpp>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>

namespace {

volatile sig_atomic_t came = 0;

std::unique_ptr<ptdeploy::Engine> opened(const char* bundle) {
  ptdeploy::OpenOptions options;
  options.threads = 2;
  return std::make_unique<ptdeploy::Engine>(ptdeploy::Engine::open(bundle, options));
}

}  // namespace

int main(int, char** arguments) {
  auto one = opened(arguments[1]), another = opened(arguments[1]);
  const auto wanted = one->logits({{5, 6, 7}});
  one.reset();
  another.reset();

  struct sigaction action = {};
  action.sa_handler = [](int) { came = 1; };
  action.sa_flags = SA_ONSTACK;
  if (sigaction(SIGTERM, &action, nullptr) != 0 || raise(SIGTERM) != 0 || !came) return 2;

  const pid_t child = fork();
  if (child == 0) {
    alarm(100);
    _exit(opened(arguments[1])->logits({{5, 6, 7}})[0].values == wanted[0].values ? 0 : 3);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 4;
}
