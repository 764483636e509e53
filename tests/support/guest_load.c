// The whole of a guest: the first program of its kernel, which puts load on the network. It is told on
// port 1 of its virtio console, one line each, and answers with one line:
//
//   address GUEST GATEWAY MAC MTU     "ready" (a network of 24 bits)
//   MODE ADDRESS AMOUNT               a JSON object, as network_load.py has it, or "error: ..."
//   run PROGRAM ARGUMENT...           what a program of the second disk prints, with spaces for the ends of its lines
//
// MODE is download, upload, echo, connect (AMOUNT: seconds), dns-same, dns-new (questions).

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SOURCE = 5001, SINK = 5002, ECHO = 5003, DNS = 53, PIECE = 1 << 20, PATIENCE = 10 };

static unsigned char piece[PIECE];
static const char *failed;
static int error;

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static struct sockaddr_in end_of(const char *address, int port)
{
    struct sockaddr_in end = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, address, &end.sin_addr);
    return end;
}

static void check(int result, const char *what)
{
    if (result < 0 && !failed) {
        failed = what;
        error = errno;
    }
}

static int connected(int type, const char *address, int port)
{
    struct sockaddr_in end = end_of(address, port);
    struct timeval patience = {.tv_sec = PATIENCE};
    int yes = 1, made = socket(AF_INET, type | SOCK_CLOEXEC, 0);
    check(made, "socket");
    setsockopt(made, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(made, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (type == SOCK_STREAM)
        setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    check(connect(made, (void *)&end, sizeof end), "connect");
    return made;
}

static void configure(char *guest, char *gateway, char *mac, int mtu)
{
    int made = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP}, card = {.ifr_name = "eth0"};
    struct sockaddr_in address = end_of(guest, 0), mask = end_of("255.255.255.0", 0);
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    unsigned char *bytes = (unsigned char *)card.ifr_hwaddr.sa_data;
    check(ioctl(made, SIOCSIFFLAGS, &lo), "lo");
    card.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    sscanf(mac, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", bytes, bytes + 1, bytes + 2, bytes + 3, bytes + 4, bytes + 5);
    check(ioctl(made, SIOCSIFHWADDR, &card), "MAC");
    card.ifr_mtu = mtu;
    check(ioctl(made, SIOCSIFMTU, &card), "MTU");
    memcpy(&card.ifr_addr, &address, sizeof address);
    check(ioctl(made, SIOCSIFADDR, &card), "address");
    memcpy(&card.ifr_netmask, &mask, sizeof mask);
    check(ioctl(made, SIOCSIFNETMASK, &card), "mask");
    card.ifr_flags = IFF_UP;
    check(ioctl(made, SIOCSIFFLAGS, &card), "up");
    address = end_of(gateway, 0);
    memcpy(&route.rt_gateway, &address, sizeof address);
    address = end_of("0.0.0.0", 0);
    memcpy(&route.rt_dst, &address, sizeof address);
    memcpy(&route.rt_genmask, &address, sizeof address);
    check(ioctl(made, SIOCADDRT, &route), "route");
    close(made);
}

static double download(const char *address, double seconds, double *begun)
{
    int made = connected(SOCK_STREAM, address, SOURCE);
    double total = 0;
    // Not the beginning, in which windows grow.
    for (double warm = now() + 0.3; now() < warm && !failed;)
        check(recv(made, piece, PIECE, 0), "recv");
    for (*begun = now(); now() - *begun < seconds && !failed;) {
        ssize_t got = recv(made, piece, PIECE, 0);
        check(got, "recv");
        total += got;
    }
    close(made);
    return total;
}

static double upload(const char *address, double seconds)
{
    int made = connected(SOCK_STREAM, address, SINK);
    unsigned char total[8];
    double count = 0;
    for (double begun = now(); now() - begun < seconds && !failed;)
        check(send(made, piece, PIECE, MSG_NOSIGNAL), "send");
    shutdown(made, SHUT_WR);
    check(recv(made, total, sizeof total, MSG_WAITALL), "recv");
    for (int at = 0; at < 8; at++)
        count = count * 256 + total[at];
    close(made);
    return count;
}

static void once(int made)
{
    unsigned char byte = 0;
    check(send(made, &byte, 1, MSG_NOSIGNAL), "send");
    if (recv(made, &byte, 1, 0) != 1)
        check(-1, "no answer");
}

static double exchanges(const char *address, double seconds, int anew, double *begun)
{
    // Reset instead of ended: no port rests in TIME-WAIT, of which there are not enough.
    struct linger abort = {.l_onoff = 1};
    double count = 0;
    int made = connected(SOCK_STREAM, address, ECHO);
    once(made);
    for (*begun = now(); now() - *begun < seconds && !failed; count++) {
        if (anew) {
            setsockopt(made, SOL_SOCKET, SO_LINGER, &abort, sizeof abort);
            close(made);
            made = connected(SOCK_STREAM, address, ECHO);
        }
        once(made);
    }
    close(made);
    return count;
}

static void questions(const char *address, int count, int anew)
{
    int made = connected(SOCK_DGRAM, address, DNS);
    for (int number = 0; number < count && !failed; number++) {
        unsigned char message[300] = {number >> 8, number, 1, 0, 0, 1};
        char name[64];
        size_t at = 12;
        snprintf(name, sizeof name, anew ? "n%lx%x.example.com" : "www.example.com", time(NULL) & 0xffffff, number);
        for (char *rest, *label = strtok_r(name, ".", &rest); label; label = strtok_r(NULL, ".", &rest))
            at += sprintf((char *)message + at, "%c%s", (int)strlen(label), label);
        memcpy(message + at, "\0\0\1\0\1", 5);
        check(send(made, message, at + 5, 0), "send");
        check(recv(made, piece, PIECE, 0), "no answer");
    }
    close(made);
}

struct answer {
    const char *unit;
    double count, seconds;
};

static struct answer load(const char *mode, const char *address, double amount)
{
    double begun = now(), count = amount;
    const char *unit = "count";
    if (!strcmp(mode, "download") || !strcmp(mode, "upload")) {
        unit = "bytes";
        count = *mode == 'd' ? download(address, amount, &begun) : upload(address, amount);
    } else if (!strcmp(mode, "echo") || !strcmp(mode, "connect")) {
        count = exchanges(address, amount, *mode == 'c', &begun);
    } else {
        questions(address, amount, !strcmp(mode, "dns-new"));
    }
    return (struct answer){unit, count, now() - begun};
}

static void become(char *words, int output)
{
    char *arguments[32] = {NULL}, *rest;
    size_t count = 0;
    for (char *word = strtok_r(words, " \n", &rest); word && count < 31; word = strtok_r(NULL, " \n", &rest))
        arguments[count++] = word;
    dup2(output, 1);
    if (chroot("/image") == 0 && chdir("/") == 0)
        execv(arguments[0], arguments);
    _exit(127);
}

static const char *run(char *words)
{
    static int mounted;
    int pipes[2], status = 0;
    size_t count = 0;
    ssize_t got = 1;
    if (!mounted) {
        check(mount("/dev/vdb", "/image", "ext4", MS_RDONLY, NULL), "/dev/vdb");
        check(mount("/dev", "/image/dev", NULL, MS_BIND, NULL), "/dev");
        check(mount("tmp", "/image/tmp", "tmpfs", 0, NULL), "/tmp");
        mounted = !failed;
    }
    check(pipe2(pipes, O_CLOEXEC), "pipe");
    if (failed)
        return NULL;
    pid_t child = fork();
    if (child == 0)
        become(words, pipes[1]);
    close(pipes[1]);
    for (; got > 0 && count < PIECE - 1; count += got > 0 ? got : 0)
        got = read(pipes[0], piece + count, PIECE - 1 - count);
    close(pipes[0]);
    check(waitpid(child, &status, 0), "waitpid");
    piece[count] = 0;
    for (unsigned char *at = piece; *at; at++)
        if (*at == '\n')
            *at = ' ';
    errno = ENOENT;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
        check(-1, "the program");
    return (const char *)piece;
}

static int heard(int port, char *line, size_t most)
{
    size_t count = 0;
    while (count < most - 1 && read(port, line + count, 1) == 1)
        if (line[count++] == '\n')
            break;
    line[count] = 0;
    return count > 0;
}

int main(void)
{
    char line[256], word[3][64];
    double amount;
    int port = -1;
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    // The port comes a while after the start. Its device is numbered among all of its kind.
    for (int device = 0; port < 0; device = (device + 1) % 4) {
        char path[32];
        snprintf(path, sizeof path, "/dev/vport%dp1", device);
        port = open(path, O_RDWR | O_CLOEXEC);
        usleep(1000);
    }
    dprintf(port, "up\n");
    while (heard(port, line, sizeof line)) {
        struct answer said = {0};
        const char *printed = NULL;
        failed = NULL;
        if (strncmp(line, "run ", 4) == 0)
            printed = run(line + 4);
        else if (sscanf(line, "address %63s %63s %63s %lf", word[0], word[1], word[2], &amount) == 4)
            configure(word[0], word[1], word[2], amount);
        else if (sscanf(line, "%63s %63s %lf", word[0], word[1], &amount) == 3)
            said = load(word[0], word[1], amount);
        if (failed)
            dprintf(port, "error: %s: %s\n", failed, strerror(error));
        else if (printed)
            dprintf(port, "%s\n", printed);
        else if (said.unit)
            dprintf(port, "{\"%s\": %.0f, \"seconds\": %.6f}\n", said.unit, said.count, said.seconds);
        else
            dprintf(port, "ready\n");
    }
    return 0;
}
