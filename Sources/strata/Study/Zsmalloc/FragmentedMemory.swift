// A simulated machine whose free frames are as many, and lie as scattered, as a trial wants.

import HostMachine
import MemoryPrimitives
import PhysicalMemory

final class FragmentedMemory {
  /// The frames that are free.
  enum Pattern { case everySecond, randomQuarter }

  private let physical: FrameAllocator
  /// Kept, so that the memory outlives this object's frames.
  private let system: HostSystem?
  /// The frames that are held, ascending.
  private var held: [FrameNumber] = []

  /// Allocates all free frames.
  init(_ physical: FrameAllocator, of system: HostSystem? = nil) {
    self.physical = physical
    self.system = system
    hold()
  }

  deinit { for frame in held { physical.free(frame, BlockOrder(0)) } }

  /// The most frames that `withFree` can free.
  var capacity: Int { held.count / 4 }

  /// Runs `body` while `count` frames are free: those with even numbers, or a random quarter of four times as many.
  func withFree(_ count: Int, _ pattern: Pattern, seed: UInt64, _ body: () throws -> Void) rethrows {
    let chosen =
      switch pattern {
      case .everySecond: held.indices.filter { held[$0].rawValue % 2 == 0 }.prefix(count)
      case .randomQuarter: permutation(of: 4 * count, seed: seed).prefix(count)
      }
    var keeps = Array(repeating: true, count: held.count)
    for index in chosen {
      keeps[index] = false
      physical.free(held[index], BlockOrder(0))
    }
    held = held.indices.filter { keeps[$0] }.map { held[$0] }
    defer { hold() }
    try body()
  }

  /// Allocates what is free.
  private func hold() {
    while let frame = try? physical.allocateUnlogged(
      BlockOrder(0), role: .wired, priority: .interrupt, for: FrameOwner("study"))
    {
      held.append(frame)
    }
    held.sort()
  }
}
