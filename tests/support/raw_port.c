/*
 * raw_port NAME < SCRIPT: say into the console port of that name what a hostile kernel would say.
 *
 * Lines of SCRIPT: "?HEX" sends a message and prints the reply, in hexadecimal digits, or "end" if the port has
 * been left; ".HEX" sends one that has no reply; "=N OFFSET" keeps 8 bytes of the last reply, which @N among the
 * digits of later lines stands for. The first four bytes of a reply are its length.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST = 3 << 20 };
static unsigned char sent[MOST], reply[MOST], kept[10][8];
static char line[2 * MOST];

static int port(const char *name)
{
	DIR *ports = opendir("/sys/class/virtio-ports");
	struct dirent *entry;
	char path[300], found[64];

	while (ports && (entry = readdir(ports))) {
		snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
		FILE *file = fopen(path, "r");
		int same = file && fgets(found, sizeof found, file) &&
			   (found[strcspn(found, "\n")] = 0, !strcmp(found, name));
		if (file)
			fclose(file);
		if (same) {
			snprintf(path, sizeof path, "/dev/%s", entry->d_name);
			return open(path, O_RDWR);
		}
	}
	return -1;
}

static size_t parse(const char *from)
{
	size_t length = 0;

	while (*from && *from != '\n') {
		unsigned byte;
		if (*from == '@') {
			memcpy(sent + length, kept[from[1] - '0'], 8);
			length += 8;
		} else if (sscanf(from, "%2x", &byte) == 1) {
			sent[length++] = (unsigned char)byte;
		} else {
			fprintf(stderr, "not hexadecimal: %.8s\n", from);
			exit(2);
		}
		from += 2;
	}
	return length;
}

/* Whether all of it could be sent. */
static int send_all(int to, size_t length)
{
	for (size_t at = 0; at < length;) {
		ssize_t count = write(to, sent + at, length - at);
		if (count <= 0)
			return 0;
		at += (size_t)count;
	}
	return 1;
}

static int receive(int from, size_t start, size_t end)
{
	while (start < end) {
		ssize_t count = read(from, reply + start, end - start);
		if (count <= 0)
			return 0;
		start += (size_t)count;
	}
	return 1;
}

int main(int count, char **arguments)
{
	int fd = count == 2 ? port(arguments[1]) : -1;

	if (fd < 0) {
		perror("port");
		return 2;
	}
	while (fgets(line, sizeof line, stdin)) {
		if (*line == '=') {
			memcpy(kept[line[1] - '0'], reply + atoi(line + 2), 8);
			continue;
		}
		int there = send_all(fd, parse(line + 1));
		if (*line != '?')
			continue;
		uint32_t length = 0;
		there = there && receive(fd, 0, 4);
		memcpy(&length, reply, 4);
		if (!there || length < 16 || length > MOST || !receive(fd, 4, length)) {
			puts("end");
			continue;
		}
		for (uint32_t at = 0; at < length; at++)
			printf("%02x", reply[at]);
		puts("");
	}
	return 0;
}
