// Sends what it is told to, one line of standard input each, and says on standard output what came of it:
//
//   tcp ADDRESS PORT [HEX...]   "open", and what came back after each HEX, or the error: "open EOF",
//                               "ECONNREFUSED". What commas separate goes in segments of its own
//   udp ADDRESS PORT HEX        the answer, the error, or "silent"
//   frame INTERFACE HEX         "sent"; no answer is waited for
//
// All runs without a shell's help, so that a guest needs nothing but this file.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 65536, LINE = 4 * MOST, PATIENCE = 60000, QUIET = 300 };

static int digit(char letter)
{
    return letter >= '0' && letter <= '9' ? letter - '0' : letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
}

static size_t bytes_of(const char *hex, unsigned char *bytes)
{
    size_t count = 0;
    for (; count < MOST && digit(hex[0]) >= 0 && digit(hex[1]) >= 0; hex += 2)
        bytes[count++] = digit(hex[0]) << 4 | digit(hex[1]);
    return count;
}

static socklen_t address_of(const char *text, int port, struct sockaddr_storage *address)
{
    struct sockaddr_in *four = (void *)address;
    struct sockaddr_in6 *six = (void *)address;
    memset(address, 0, sizeof *address);
    if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons(port);
        return sizeof *four;
    }
    six->sin6_family = AF_INET6;
    six->sin6_port = htons(port);
    // Link-local and multicast addresses need an interface: there is one.
    six->sin6_scope_id = if_nametoindex("eth0");
    return inet_pton(AF_INET6, text, &six->sin6_addr) == 1 ? sizeof *six : 0;
}

static void say_bytes(const char *before, const unsigned char *bytes, ssize_t count)
{
    printf("%s", before);
    for (ssize_t at = 0; at < count; at++)
        printf("%02x", bytes[at]);
}

static void say_error(const char *before)
{
    printf("%s%s\n", before, strerrorname_np(errno));
}

static void talk(int made, unsigned char *data, char *turns)
{
    char *rest, *more;
    for (char *turn = strtok_r(turns, " \n", &rest); turn; turn = strtok_r(NULL, " \n", &rest)) {
        struct pollfd wait = {.fd = made, .events = POLLIN};
        ssize_t got = 0;
        for (char *part = strtok_r(turn, ",", &more); part && got >= 0; part = strtok_r(NULL, ",", &more))
            got = send(made, data, bytes_of(part, data), MSG_NOSIGNAL);
        if (got >= 0 && poll(&wait, 1, PATIENCE) == 0) {
            printf(" silent");
            return;
        }
        if (got >= 0)
            got = recv(made, data, MOST, 0);
        if (got <= 0) {
            printf(" %s", got < 0 ? strerrorname_np(errno) : "EOF");
            return;
        }
        say_bytes(" ", data, got);
    }
}

static void tcp(int made, const struct sockaddr_storage *to, socklen_t length, unsigned char *data, char *turns)
{
    struct pollfd wait = {.fd = made, .events = POLLOUT};
    int error = 0, yes = 1;
    socklen_t size = sizeof error;
    if (connect(made, (const void *)to, length) < 0 && errno != EINPROGRESS) {
        say_error("");
        return;
    }
    if (poll(&wait, 1, PATIENCE) == 0) {
        printf("silent\n");
        return;
    }
    getsockopt(made, SOL_SOCKET, SO_ERROR, &error, &size);
    errno = error;
    if (error) {
        say_error("");
        return;
    }
    setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    // Only the connecting must not wait longer than it may.
    fcntl(made, F_SETFL, 0);
    printf("open");
    talk(made, data, turns);
    printf("\n");
}

// Whether it is an address of many, of whom nobody says that he did not take a datagram.
static int is_of_many(const struct sockaddr_storage *to)
{
    const struct sockaddr_in6 *six = (const void *)to;
    uint32_t four = ntohl(((const struct sockaddr_in *)to)->sin_addr.s_addr);
    return to->ss_family == AF_INET6 ? IN6_IS_ADDR_MULTICAST(&six->sin6_addr) : IN_MULTICAST(four) || four == INADDR_BROADCAST;
}

static void udp(int made, const struct sockaddr_storage *to, socklen_t length, unsigned char *data, size_t count)
{
    struct pollfd wait = {.fd = made, .events = POLLIN};
    int yes = 1;
    setsockopt(made, SOL_SOCKET, SO_BROADCAST, &yes, sizeof yes);
    if (connect(made, (const void *)to, length) < 0 || send(made, data, count, 0) < 0) {
        say_error("");
        return;
    }
    // One host answers, or is said not to be reached, however busy this machine is.
    if (poll(&wait, 1, is_of_many(to) ? QUIET : PATIENCE) == 0) {
        printf("silent\n");
        return;
    }
    ssize_t got = recv(made, data, MOST, 0);
    if (got < 0) {
        say_error("");
        return;
    }
    say_bytes("", data, got);
    printf("\n");
}

static void frame(const char *interface, unsigned char *data, size_t count)
{
    // One for all: to close such a socket takes milliseconds.
    static int made = -1;
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(interface)};
    if (made < 0)
        made = socket(AF_PACKET, SOCK_RAW, 0);
    if (made < 0 || sendto(made, data, count, 0, (void *)&to, sizeof to) < 0)
        say_error("");
    else
        printf("sent\n");
}

int main(void)
{
    static char line[LINE];
    static unsigned char data[MOST];
    while (fgets(line, sizeof line, stdin)) {
        char kind[8], target[64];
        int port = 0, at = 0;
        if (sscanf(line, "frame %63s %n", target, &at) == 1 && at) {
            frame(target, data, bytes_of(line + at, data));
        } else if (sscanf(line, "%7s %63s %d %n", kind, target, &port, &at) == 3 && at) {
            struct sockaddr_storage to;
            socklen_t length = address_of(target, port, &to);
            int stream = strcmp(kind, "tcp") == 0;
            int type = stream ? SOCK_STREAM | SOCK_NONBLOCK : SOCK_DGRAM;
            int made = length ? socket(to.ss_family, type, 0) : -1;
            if (made < 0)
                say_error("");
            else if (stream)
                tcp(made, &to, length, data, line + at);
            else
                udp(made, &to, length, data, bytes_of(line + at, data));
            close(made);
        } else {
            printf("what is this: %s", line);
            return 2;
        }
    }
    return 0;
}
