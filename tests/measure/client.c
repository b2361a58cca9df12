/* The least that asking tailscaled for its status can cost: a static program that sends the request
   and reads the answer. Its argument is the socket. */
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int count, char **words) {
    static const char request[] = "GET /localapi/v0/status?peers=false HTTP/1.1\r\n"
                                  "Host: local-tailscaled.sock\r\nConnection: close\r\n\r\n";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char answer[65536];
    ssize_t got, all = 0;
    int daemon = socket(AF_UNIX, SOCK_STREAM, 0);
    if (count != 2 || strlen(words[1]) >= sizeof address.sun_path)
        return 64;
    strcpy(address.sun_path, words[1]);
    if (connect(daemon, (struct sockaddr *)&address, sizeof address) != 0 ||
        write(daemon, request, sizeof request - 1) != (ssize_t)(sizeof request - 1))
        return 1;
    while ((got = read(daemon, answer, sizeof answer)) > 0)
        all += got;
    return all > 0 && got == 0 ? 0 : 1;
}
