module tuneyard.dev/cluster/probe-server

go 1.26.0
