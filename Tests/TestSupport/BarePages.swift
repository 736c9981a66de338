// Pages that belong to no object: a frame, its record and its place in the counts.

import MemoryPrimitives
import PhysicalMemory

/// Fills the free frames with pages that belong to no object yet; `busyWord` makes them idle.
package func fillWithPages(_ memory: FrameAllocator, owner: UInt32 = 1) -> [FrameNumber] {
  var frames: [FrameNumber] = []
  while let frame = try? memory.allocate(BlockOrder(0), role: .pageable, priority: .interrupt) {
    let record = memory.record(frame)!
    record.owner = owner
    record.index = UInt64(frames.count)
    record.pageFlags = .valid
    record.busyWord = .none
    frames.append(frame)
  }
  return frames
}

package func freePage(_ memory: FrameAllocator, _ frame: UInt32) {
  memory.record(FrameNumber(frame))!.busyWord = .xbusy
  memory.free(page: FrameNumber(frame), .dropped)
}

package func wirePage(_ memory: FrameAllocator, _ frame: UInt32) {
  memory.record(FrameNumber(frame))!.busyWord = .wiredOnce
  memory.setMobility(of: FrameNumber(frame), .unmovable)
}

package func unwirePage(_ memory: FrameAllocator, _ frame: UInt32) {
  memory.record(FrameNumber(frame))!.busyWord = .none
  memory.setMobility(of: FrameNumber(frame), .movable)
}
