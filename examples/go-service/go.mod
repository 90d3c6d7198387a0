module example.com/seawall/go-service

go 1.22
