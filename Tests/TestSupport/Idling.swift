// Waiting in a test's own loop: a processor that waits so answers the messages of others, as one in the kernel does.

import Foundation
import MemoryPrimitives

/// Sleeps until `isOver`, and answers other processors after each `microseconds`.
package func idle(_ microseconds: UInt32 = 20, until isOver: () -> Bool) {
  while !isOver() {
    withInterruptsOff {}
    usleep(microseconds)
  }
}
