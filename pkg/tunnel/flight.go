package tunnel

import "time"

const (
	// firstFlight is what may be on its way before anything is known of the path.
	firstFlight = 256 << 10
	// minFlight is the least that may be on its way: two acknowledgements' worth.
	minFlight = 2 * askEvery
	// flightGain times the bandwidth-delay product is what may be on its way: 1 would not show that a path has
	// become faster, and what is above 1 waits in queues, where small frames wait behind it.
	flightGain = 1.5
	// flightSlack is added to the round trip: on short paths the ends' own scheduling takes longer than the path.
	flightSlack = 2 * time.Millisecond
	// bulkSlack is that on a lane of its own, less two round trips: so much work lies in front of every hop of a short path
	// that it never runs out. A long path's queue is the network's, which small frames share.
	bulkSlack = 30 * time.Millisecond
	// stallMost is how many round trips are added for packets that the path loses: for one that is lost, and once more when it is
	// sent again. What comes behind it has to wait in the other end's TCP, which is no queue that another stream waits in.
	stallMost = 2
	// rttWindow is how long the shortest round trip is believed. Then the queue is drained once, to see it anew.
	rttWindow = 10 * time.Second
	// probeAcks is how many acknowledgements then show it. They are few, since TCP on a lossy path soon believes that the
	// path carries no more than it is given (BBR: of the last ten round trips).
	probeAcks = 4
	// lateWeight is how many round trips count for what they take lately.
	lateWeight = 8
	// rateRounds is how many round trips the highest rate is believed, and the longest stall.
	rateRounds = 10
	// markEvery is how far marks are apart: it bounds their number.
	markEvery = 16 << 10
)

// flight says how much may be on its way to the other end: about 1.5 times what fills the path, so that a large window is
// no queue. As in BBR the path is the shortest round trip times the highest rate seen lately, both
// taken from acknowledgements. Its user locks.
type flight struct {
	limit int  // bytes
	bulk  bool // nothing small waits behind it

	marks []mark

	rtt   time.Duration // the shortest; 0: not known
	rttAt time.Time     // when it was seen

	lately time.Duration // what round trips take with what is on the way now, smoothed

	probing   int           // how many acknowledgements a probe still waits for; 0: there is none
	probeFrom uint64        // what was on the way when it began ends here
	probeRTT  time.Duration // the shortest since then; 0: none yet
	lastMark  uint64        // position of the newest mark

	rate, before float64 // bytes per second: the highest in this span and in the one before
	spanAt       time.Time

	stall, stalled time.Duration // on a lane of its own: how much longer a round trip took than what was on its way explains, likewise
	stallAt        time.Time
}

// mark is a position of the stream, when it was sent, and what had been acknowledged then.
type mark struct {
	pos, delivered uint64
	at             time.Time
	full           bool // as much was on its way as may be: what comes of it is the path's rate and not the sender's
	drained        bool // for a probe: all that was on its way before it has arrived
}

// begin forgets the path: another one begins. Nothing is on its way.
func (f *flight) begin() { *f = flight{limit: firstFlight, bulk: f.bulk, marks: f.marks[:0]} }

// sent notes that everything up to pos is on its way, and everything up to delivered acknowledged.
func (f *flight) sent(pos, delivered uint64, now time.Time) {
	if n := len(f.marks); n > 0 && pos < f.marks[n-1].pos+markEvery {
		return
	}
	full := int(pos-delivered) >= f.limit-maxBatch
	f.marks = append(f.marks, mark{pos, delivered, now, full, f.probing > 0 && delivered >= f.probeFrom})
	f.lastMark = pos
}

// acked notes that everything up to pos is acknowledged.
func (f *flight) acked(pos uint64, now time.Time) {
	n := 0
	for n < len(f.marks) && f.marks[n].pos <= pos {
		n++
	}
	if n == 0 {
		return
	}
	m := f.marks[n-1]
	f.marks = f.marks[:copy(f.marks, f.marks[n:])]
	took := max(now.Sub(m.at), time.Microsecond)
	f.lately += (took - f.lately) / lateWeight
	if m.drained {
		f.sawDrained(took, now)
	} else {
		f.sawRTT(took, m.full, now)
		f.sawRate(float64(pos-m.delivered)/took.Seconds(), m.full, now)
		if f.bulk {
			f.sawStall(took, float64(m.pos-m.delivered), now)
		}
	}

	f.limit = minFlight
	if f.probing == 0 {
		slack := flightSlack
		if f.bulk {
			slack = max(slack, bulkSlack-2*f.rtt) + max(f.stall, f.stalled)
		}
		path := flightGain*f.rtt.Seconds() + slack.Seconds()
		f.limit = int(min(maxReplay, max(minFlight, max(f.rate, f.before)*path)))
	}
}

// sawDrained notes that a round trip without a queue took so long.
func (f *flight) sawDrained(took time.Duration, now time.Time) {
	if f.probing == 0 {
		return
	}
	if f.probeRTT == 0 || took < f.probeRTT {
		f.probeRTT = took
	}
	if f.probing--; f.probing == 0 {
		f.rtt, f.rttAt = f.probeRTT, now
	}
}

func (f *flight) sawRTT(took time.Duration, full bool, now time.Time) {
	if f.rtt == 0 || took <= f.rtt+f.rtt/8 {
		f.rttAt = now
		if f.rtt == 0 || took < f.rtt {
			f.rtt = took
		}
		return
	}
	if full && f.probing == 0 && now.Sub(f.rttAt) > rttWindow {
		f.probing, f.probeFrom, f.probeRTT = probeAcks, f.lastMark, 0
	}
}

func (f *flight) sawRate(rate float64, full bool, now time.Time) {
	if full && now.Sub(f.spanAt) > rateRounds*f.rtt {
		f.before, f.rate, f.spanAt = f.rate, 0, now
	}
	if full || rate > max(f.rate, f.before) {
		f.rate = max(f.rate, rate)
	}
}

// sawStall notes that inFlight bytes were on the way, and the last of them took so long. Without this a lossy path ends in a spiral: round trips
// take longer, so the rate falls, so less may be on its way.
func (f *flight) sawStall(took time.Duration, inFlight float64, now time.Time) {
	if now.Sub(f.stallAt) > rateRounds*f.rtt {
		f.stalled, f.stall, f.stallAt = f.stall, 0, now
	}
	explained := max(f.rtt, time.Duration(inFlight/max(f.rate, f.before)*float64(time.Second)))
	f.stall = max(f.stall, min(took-explained, stallMost*f.rtt))
}
