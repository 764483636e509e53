// Carries Ethernet frames between a TAP (one with each read and write) and a stream socket (after 32-bit
// big-endian lengths), both ways: bridge TAP-DESCRIPTOR SOCKET-DESCRIPTOR. Ends with the socket.

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LARGEST = 65535 + 18, BATCH = 256 << 10 };

static int tap, link_;

static void whole(const char *bytes, size_t count)
{
    while (count > 0) {
        ssize_t sent = send(link_, bytes, count, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            exit(0);
        bytes += sent;
        count -= sent;
    }
}

static void *outwards(void *unused)
{
    static char batch[BATCH + 4 + LARGEST];
    (void)unused;
    for (;;) {
        size_t held = 0;
        struct pollfd wait = {.fd = tap, .events = POLLIN};
        poll(&wait, 1, -1);
        while (held < BATCH) {
            ssize_t length = read(tap, batch + held + 4, LARGEST);
            if (length <= 0)
                break;
            uint32_t head = htonl(length);
            memcpy(batch + held, &head, 4);
            held += 4 + length;
        }
        whole(batch, held);
    }
    return NULL;
}

int main(int count, char **arguments)
{
    static char held[BATCH + 4 + LARGEST];
    size_t filled = 0;
    pthread_t thread;
    if (count != 3)
        return 2;
    tap = atoi(arguments[1]);
    link_ = atoi(arguments[2]);
    fcntl(tap, F_SETFL, O_NONBLOCK);
    fcntl(link_, F_SETFL, 0);
    if (pthread_create(&thread, NULL, outwards, NULL) != 0)
        return 1;
    for (;;) {
        ssize_t got = recv(link_, held + filled, sizeof held - filled, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return 0;
        filled += got;
        size_t at = 0;
        while (filled - at >= 4) {
            uint32_t length;
            memcpy(&length, held + at, 4);
            length = ntohl(length);
            if (length > LARGEST)
                return 1;
            if (filled - at < 4 + length)
                break;
            // A frame that the interface does not take is lost, as on any cable.
            while (write(tap, held + at + 4, length) < 0 && errno == EAGAIN) {
                struct pollfd wait = {.fd = tap, .events = POLLOUT};
                poll(&wait, 1, -1);
            }
            at += 4 + length;
        }
        memmove(held, held + at, filled - at);
        filled -= at;
    }
}
