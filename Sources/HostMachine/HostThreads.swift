// Threads of the simulated machine. Each is a processor of its own while it runs: to the core that is a thread that is
// never preempted. There are at most as many as the machine has free processors.

import CPlatform
import Foundation
import MemoryPrimitives
import Synchronization

/// Whether a thread has returned.
final class HostThreadEnd: Sendable {
  let hasCome = Atomic<Bool>(false)
}

/// The threads that were started and not joined yet.
final class HostThreads: @unchecked Sendable {
  /// Threads that have left their processor and do not count as ended yet: the thread that joins one is about to be
  /// woken.
  let leaving = Atomic<Int>(0)
  private let lock = NSLock()
  private var ends: [UInt64: HostThreadEnd] = [:]
  private var started: UInt64 = 0

  func add() -> (handle: UInt64, end: HostThreadEnd) {
    lock.withLock {
      started += 1
      let end = HostThreadEnd()
      ends[started] = end
      return (started, end)
    }
  }

  func remove(_ handle: UInt64) -> HostThreadEnd? { lock.withLock { ends.removeValue(forKey: handle) } }
}

extension SimulatedMachine {
  /// Starts a thread on the first of its permitted processors that has no thread. Returns its handle, or 0 when all
  /// have one.
  func start(_ request: cp_thread_request) -> UInt64 {
    guard hasOtherThreads,
      let processor = processors.first(where: {
        $0.index < 64 && request.processors >> UInt64($0.index) & 1 != 0 && $0.reserve()
      })
    else { return 0 }
    let (handle, end) = threads.add()
    processor.isService = request.is_service
    let body = request.body
    let argument = request.argument.map { UInt(bitPattern: $0) } ?? 0
    let atStart = atStart
    let thread = Thread {
      atStart?(processor.index)
      processor.enter(reserved: true) {
        body(UnsafeMutableRawPointer(bitPattern: argument))
        self.threads.leaving.add(1, ordering: .sequentiallyConsistent)
      }
      end.hasCome.store(true, ordering: .sequentiallyConsistent)
      self.threads.leaving.subtract(1, ordering: .sequentiallyConsistent)
      self.wakeAll()
    }
    thread.stackSize = 8 << 20
    thread.start()
    return handle
  }

  /// Waits until a thread has returned, at interrupt windows of its own all the while.
  func join(_ handle: UInt64) {
    guard let end = threads.remove(handle) else {
      fatalError("a thread that was not started, or is joined twice")
    }
    while !end.hasCome.load(ordering: .acquiring) {
      _ = sleepAmongThreads(.thread, until: .max) { end.hasCome.load(ordering: .acquiring) }
    }
  }

  /// Invalidates the pages on every processor that caches translations.
  func shootDown(_ runs: UnsafeBufferPointer<cp_page_run>) {
    if let invalidate { for run in runs { invalidate(run.address, run.count) } }
    Self.invalidate(runs)
    let me = Int(cp_processor_index())
    for processor in processors where processor.index != me && processor.keepsTranslations {
      var list = runs
      withUnsafeMutablePointer(to: &list) {
        processor.post(
          { SimulatedMachine.invalidate($0.load(as: UnsafeBufferPointer<cp_page_run>.self)) }, $0,
          from: processors[me], ring: wakeAll)
      }
    }
  }

  /// Calls the invalidation hook of this thread; all pages are the last address.
  private static func invalidate(_ runs: UnsafeBufferPointer<cp_page_run>) {
    for run in runs {
      if run.count == CP_ALL_PAGES {
        cp_invalidate_page(.max)
      } else {
        for page in 0..<run.count { cp_invalidate_page(run.address &+ page &* Page.size) }
      }
    }
  }
}
