# The same image as `make image` writes without a daemon: one static binary.
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETARCH
ARG VERSION=dev
RUN CGO_ENABLED=0 GOOS=linux GOARCH=$TARGETARCH \
    go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$VERSION" -o /out/spillway ./cmd/spillway

# No CA bundle: the agent speaks TLS to the API server and the kubelet only, and verifies both by the cluster's own CA,
# which comes with the service account. No shell, no libc: there is nothing to use but the agent.
FROM scratch
COPY --from=build /out/spillway /spillway
# The files and sockets that it reads belong to root; the DaemonSet takes the capabilities away.
USER 0
ENTRYPOINT ["/spillway"]
CMD ["agent"]
