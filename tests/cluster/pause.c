// The sandbox container: holds a pod's namespaces open and, as process 1 of a shared pid namespace, reaps.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void stop(int signal) { (void)signal; _exit(0); }

int main(void) {
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    signal(SIGCHLD, SIG_IGN); // the kernel reaps by itself
    for (;;) pause();
}
