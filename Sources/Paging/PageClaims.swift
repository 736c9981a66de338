// Who keeps a page from being moved, written out or given up: the claims word of its record, changed by
// compare-and-swap only.
//
//   exclusive  one taker, when nobody else has any claim; the waiters bit may be set
//   shared     any number, while nobody is exclusive and nobody wires or holds
//   hold, wire any number, while nobody is exclusive
//
// The waiters bit says that somebody sleeps until the page is no longer exclusive, or has no claims at all.

import MemoryPrimitives
import PhysicalMemory

extension BusyWord {
  static var waiters: UInt32 { 1 << 31 }
  static var oneSbusy: UInt32 { 1 << 22 }
  static var oneHold: UInt32 { 1 << 12 }

  /// Without the waiters bit.
  var ofUsers: UInt32 { rawValue & ~Self.waiters }
  var isBusy: Bool { isXbusy || sbusyCount > 0 }
}

extension FrameRecordPointer {
  /// Changes the claims as `change` says, or not at all when it answers nil.
  @inline(__always) private func changeBusyWord(_ change: (BusyWord) -> UInt32?) -> BusyWord? {
    while true {
      let before = busyWord
      guard let after = change(before) else { return nil }
      if exchangeBusyWord(before, for: BusyWord(rawValue: after)) { return before }
    }
  }

  /// Takes a page that nobody has any claim on.
  func tryXbusy() -> Bool {
    changeBusyWord { $0.ofUsers == 0 ? $0.rawValue | BusyWord.xbusy.rawValue : nil } != nil
  }
  /// Whether somebody is to be woken.
  func endXbusy() -> WaitersAnswer {
    WaitersAnswer(changeBusyWord { $0.rawValue & ~(BusyWord.xbusy.rawValue | BusyWord.waiters) })
  }

  /// For writing out: nobody wires, holds or has it exclusive.
  func trySbusy() -> Bool {
    changeBusyWord {
      $0.isXbusy || $0.wires > 0 || $0.holds > 0 || $0.sbusyCount == 255
        ? nil : $0.rawValue + BusyWord.oneSbusy
    } != nil
  }
  func endSbusy() -> WaitersAnswer {
    WaitersAnswer(changeBusyWord { ($0.rawValue - BusyWord.oneSbusy) & ~BusyWord.waiters })
  }
  /// The only sharer takes the page for itself.
  func trySbusyToXbusy() -> Bool {
    changeBusyWord {
      $0.ofUsers == BusyWord.oneSbusy
        ? $0.rawValue - BusyWord.oneSbusy | BusyWord.xbusy.rawValue : nil
    } != nil
  }

  enum HoldAnswer { case held, busy, tooMany }
  func tryHold() -> HoldAnswer {
    var answer = HoldAnswer.held
    _ = changeBusyWord {
      answer = $0.isXbusy ? .busy : $0.holds == 0x3ff ? .tooMany : .held
      return answer == .held ? $0.rawValue + BusyWord.oneHold : nil
    }
    return answer
  }
  /// Nil when nobody holds it: a bug of the caller.
  func endHold() -> WaitersAnswer? {
    changeBusyWord { $0.holds == 0 ? nil : ($0.rawValue - BusyWord.oneHold) & ~BusyWord.waiters }
      .map { WaitersAnswer($0) }
  }

  enum WireAnswer { case first, again, busy, tooMany }
  func tryWire() -> WireAnswer {
    var answer = WireAnswer.busy
    _ = changeBusyWord {
      if $0.isXbusy {
        answer = .busy
        return nil
      }
      if $0.wires == 0xfff {
        answer = .tooMany
        return nil
      }
      answer = $0.wires == 0 ? .first : .again
      return $0.rawValue + 1
    }
    return answer
  }
  enum UnwireAnswer { case last, more, notWired }
  func endWire() -> UnwireAnswer {
    guard let before = changeBusyWord({ $0.wires == 0 ? nil : $0.rawValue - 1 }) else { return .notWired }
    return before.wires == 1 ? .last : .more
  }

  /// Asks to be woken. False when the page is no longer in the way of `whom`.
  func noteWaiter(until condition: (BusyWord) -> Bool) -> Bool {
    changeBusyWord { condition($0) ? nil : $0.rawValue | BusyWord.waiters } != nil
  }
}

/// Whether a claim that ended had somebody waiting.
enum WaitersAnswer {
  case somebodyWaits, nobodyWaits
  init(_ before: BusyWord?) { self = before?.hasWaiters == true ? .somebodyWaits : .nobodyWaits }
}

extension PagedMemory {
  /// Wakes who waits for pages, if anybody does. No lock held.
  func wake(_ waiters: WaitersAnswer) {
    if waiters == .somebodyWaits { state.pointee.waiting.wake(on: machine) }
  }

  /// Sleeps until the page is not exclusive any more. The ticket is taken before the waiters bit is set, so a
  /// wake in between is not lost. Called with the object's lock held, which it drops.
  func waitWhileXbusy(_ record: FrameRecordPointer, _ object: MemoryObject, _ interrupts: UInt64) {
    let ticket = state.pointee.waiting.ticket()
    let mustWait = record.noteWaiter { !$0.isXbusy }
    object.unlock(interrupts)
    sleep(ticket, mustWait)
  }

  /// The same until nobody has any claim on the page.
  func waitWhileClaimed(_ record: FrameRecordPointer, _ object: MemoryObject, _ interrupts: UInt64) {
    let ticket = state.pointee.waiting.ticket()
    let mustWait = record.noteWaiter { $0.ofUsers == 0 }
    object.unlock(interrupts)
    sleep(ticket, mustWait)
  }

  private func sleep(_ ticket: WaitQueue.Ticket, _ mustWait: Bool) {
    guard mustWait else { return }
    counters.pointee.waits.count()
    let woken = state.pointee.waiting.sleep(ticket, on: machine)
    precondition(woken, "a page is claimed, and nothing runs that could end it")
  }
}
