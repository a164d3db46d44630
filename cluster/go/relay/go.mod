module tuneyard.dev/cluster/relay

go 1.26.0
