/* Watches directories, as programs that reload do: inotify(7) on each of argv, and on directories that are made
 * in them. Prints a line "ready", then one for each event: its names, a space, and the path. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/inotify.h>
#include <unistd.h>

static const uint32_t WANTED = IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE | IN_CREATE | IN_DELETE | IN_MOVE | IN_DELETE_SELF;

static const struct { uint32_t mask; const char *name; } NAMES[] = {
    {IN_MODIFY, "MODIFY"}, {IN_ATTRIB, "ATTRIB"}, {IN_CLOSE_WRITE, "CLOSE_WRITE"}, {IN_CREATE, "CREATE"},
    {IN_DELETE, "DELETE"}, {IN_MOVED_FROM, "MOVED_FROM"}, {IN_MOVED_TO, "MOVED_TO"},
    {IN_DELETE_SELF, "DELETE_SELF"}, {IN_ISDIR, "ISDIR"}, {IN_Q_OVERFLOW, "OVERFLOW"},
};

static char paths[4096][1024];

static void watch(int events, const char *path)
{
    int number = inotify_add_watch(events, path, WANTED);
    if (number < 0 || number >= (int)(sizeof paths / sizeof *paths)) {
        perror(path);
        exit(1);
    }
    snprintf(paths[number], sizeof paths[number], "%s", path);
}

int main(int argc, char **argv)
{
    static char buffer[1 << 16] __attribute__((aligned(8)));
    int events = inotify_init1(IN_CLOEXEC);
    for (int at = 1; at < argc; at++)
        watch(events, argv[at]);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        ssize_t length = read(events, buffer, sizeof buffer);
        if (length <= 0)
            return 1;
        for (char *at = buffer; at < buffer + length;) {
            const struct inotify_event *event = (const void *)at;
            const char *directory = event->wd >= 0 ? paths[event->wd] : "";
            char path[1024];
            snprintf(path, sizeof path, event->len ? "%s/%s" : "%s", directory, event->name);
            const char *comma = "";
            for (size_t name = 0; name < sizeof NAMES / sizeof *NAMES; name++) {
                if (event->mask & NAMES[name].mask) {
                    printf("%s%s", comma, NAMES[name].name);
                    comma = ",";
                }
            }
            if (*comma)
                printf(" %s\n", path);
            if ((event->mask & (IN_CREATE | IN_MOVED_TO)) && (event->mask & IN_ISDIR))
                watch(events, path);
            at += sizeof *event + event->len;
        }
        fflush(stdout);
    }
}
