/*
 * The program inside the lab's slim containers: one static binary with symbols and nothing else.
 * It answers on 127.0.0.1:8080 with a line, counts requests and ticks (so that a debugger has something to read),
 * and ends at once, with status 0, on SIGTERM: pid 1 has no default handlers.
 */
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

volatile long lab_ticks = 0;
volatile long lab_requests = 0;
const char lab_greeting[] = "hello from the slim container\n";

static void stop(int signal_number)
{
    (void)signal_number;
    _exit(0);
}

static void answer_request(int listener)
{
    int client = accept(listener, NULL, NULL);
    if (client < 0)
        return;
    lab_requests++;
    if (write(client, lab_greeting, sizeof lab_greeting - 1) < 0)
        perror("slim-app: write");
    close(client);
}

static void serve_forever(int listener)
{
    struct pollfd waiting = {.fd = listener, .events = POLLIN};
    for (;;) {
        if (poll(&waiting, listener < 0 ? 0 : 1, 200) > 0)
            answer_request(listener);
        lab_ticks++;
    }
}

int main(void)
{
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);

    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(8080), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 8) < 0) {
        perror("slim-app: no port 8080, going on without"); /* a container on the host's network, or a second one there */
        close(listener);
        listener = -1;
    }
    printf("slim-app: ready\n");
    fflush(stdout);
    serve_forever(listener);
    return 0;
}
