/* get HOST PORT [GET]: prints the first address of a name, and with a third word what its web server says. */
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;
	char ip[NI_MAXHOST], request[1024], answer[4096];
	int failed, fd;
	ssize_t n;

	if (argc < 3)
		return 2;
	failed = getaddrinfo(argv[1], argv[2], &hints, &list);
	if (failed) {
		fprintf(stderr, "%s: %s\n", argv[1], gai_strerror(failed));
		return 1;
	}
	if (getnameinfo(list->ai_addr, list->ai_addrlen, ip, sizeof ip, NULL, 0, NI_NUMERICHOST))
		return 1;
	puts(ip);
	fflush(stdout);
	if (argc < 4)
		return 0;
	fd = socket(list->ai_family, list->ai_socktype, list->ai_protocol);
	if (fd < 0 || connect(fd, list->ai_addr, list->ai_addrlen)) {
		perror(argv[1]);
		return 1;
	}
	n = snprintf(request, sizeof request, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", argv[1]);
	if (write(fd, request, n) != n)
		return 1;
	while ((n = read(fd, answer, sizeof answer)) > 0)
		fwrite(answer, 1, n, stdout);
	return n < 0;
}
