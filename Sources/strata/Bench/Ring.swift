// A queue of pointers from one thread to another.

import CPlatform
import Synchronization

/// A ring of pointers between one producer and one consumer, without a lock.
///
/// Each side publishes its position once for `batch` pointers, and before it waits. So the ring itself moves a cache line
/// for 32 pointers, and the measured time is that of the allocators.
final class Ring: Sendable {
  private static let mask = 255
  private static let batch = 32
  nonisolated(unsafe) private let words = UnsafeMutablePointer<UnsafeMutableRawPointer?>.allocate(
    capacity: 256)
  /// Counts of pointers pushed and popped, each on a cache line of its own.
  nonisolated(unsafe) private let counts = UnsafeMutableRawPointer.allocate(byteCount: 256, alignment: 128)

  init() {
    words.initialize(repeating: nil, count: 256)
    put.initialize(to: Atomic(0))
    taken.initialize(to: Atomic(0))
  }

  deinit {
    words.deallocate()
    counts.deallocate()
  }

  private var put: UnsafeMutablePointer<Atomic<Int>> { counts.assumingMemoryBound(to: Atomic<Int>.self) }
  private var taken: UnsafeMutablePointer<Atomic<Int>> {
    (counts + 128).assumingMemoryBound(to: Atomic<Int>.self)
  }

  /// The state of one side: its own position, and the last position of the other side that it has read.
  struct End {
    private let ring: Ring
    private var mine = 0
    private var others = 0

    init(_ ring: Ring) { self.ring = ring }

    mutating func put(_ pointer: UnsafeMutableRawPointer) {
      var spins: UInt32 = 0
      if mine - others > Ring.mask { publish() }
      while mine - others > Ring.mask {
        others = ring.taken.pointee.load(ordering: .acquiring)
        if mine - others > Ring.mask { cp_pause(spins) }
        spins &+= 1
      }
      ring.words[mine & Ring.mask] = pointer
      mine += 1
      if mine % Ring.batch == 0 { publish() }
    }

    /// Lets the consumer have all pointers that were put: at the end, and before a wait.
    func publish() { ring.put.pointee.store(mine, ordering: .releasing) }

    mutating func pop() -> UnsafeMutableRawPointer {
      var spins: UInt32 = 0
      while others == mine {
        others = ring.put.pointee.load(ordering: .acquiring)
        if others == mine { cp_pause(spins) }
        spins &+= 1
      }
      defer {
        mine += 1
        if mine % Ring.batch == 0 { ring.taken.pointee.store(mine, ordering: .releasing) }
      }
      return ring.words[mine & Ring.mask].unsafelyUnwrapped
    }
  }
}
