/* Holds a UDP socket by which the kernel takes ESP out of UDP (RFC 3948, UDP_ENCAP_ESPINUDP), and reads what else comes. */
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>

int main(void) {
    const int udp_encap = 100, espinudp = 2;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(4500)};
    char other[2048];
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || setsockopt(fd, IPPROTO_UDP, udp_encap, &espinudp, sizeof espinudp) ||
        bind(fd, (struct sockaddr *)&address, sizeof address)) {
        perror("encap");
        return 1;
    }
    for (;;)
        recv(fd, other, sizeof other, 0);
}
