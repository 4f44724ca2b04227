package journal

import "log/slog"

// Message IDs of the log, one for each kind of record: journald has them as MESSAGE_ID, and they never change
// (systemd.journal-fields(7)). deploy/docs/logs.md lists them.
var (
	MessageStart    = newID("f9aea77e5f5341a3953efbacc0a5a079") // the agent starts
	MessageStop     = newID("e2e089f28c8140edb67af8b08ac42ea0")
	MessageLevel    = newID("a0b658fa37a34a15a9de82a3722b8f6f") // the level of the node changed
	MessageDecision = newID("af2859e4f5ef407b87486a6acf261766") // looks at the pods at level evict or above
	MessageEviction = newID("1abd2b17ac17415ab3b05234adf6ae01") // an eviction reached a state
	MessageKill     = newID("783663fae324488cb3ed65bfb8618cd2") // the kernel killed for lack of memory
	MessageExit     = newID("8613b60fa2d34944bbdff56b7139b0ce") // a container ended, and why
	MessageIncident = newID("5c192227a4ba498bac0ac821f235362f") // an incident was recorded or completed
	MessageSource   = newID("b1665ff703454e0b8d7f796322d88ff3") // something that the agent needs came or went
	MessageConfig   = newID("3ca5c44365c647ac8dd4bf81367a2e61") // the config file changed, or was refused
	MessageLate     = newID("a458c20d2d744219acfdd5ce2a430dc3") // the agent itself was starved
)

func newID(id string) slog.Attr { return slog.String("message_id", id) }
